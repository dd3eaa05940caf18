/**
 * Chat templates: Jinja source that turns a conversation into the text a model was trained on, rendered as transformers'
 * `apply_chat_template` does.
 */
import { FormatError, LlmError, OptionsError } from "@llm/core";
import { parseJinja, renderJinja, type JinjaProgram } from "./jinja.js";
import type { ChatMessage, Tool } from "./types.js";

/** What a template is rendered with. */
export interface RenderChatTemplateOptions {
  messages: readonly ChatMessage[];
  /** Tools as JSON-schema objects; `tools` is none in the template when there are none. */
  tools?: readonly Tool[] | undefined;
  /** Append the tokens that open the assistant's turn. @default false */
  addGenerationPrompt?: boolean | undefined;
  /** Text of the begin token; undefined in the template when absent. */
  bosToken?: string | undefined;
  /** Text of the end token; undefined in the template when absent. */
  eosToken?: string | undefined;
  /** Further variables (`enable_thinking`, …); they win over those above. */
  variables?: Readonly<Record<string, unknown>> | undefined;
  /** What `strftime_now` formats, in local time. @default the current time */
  now?: Date | undefined;
}

/** A template that comes with the SDK. */
export interface NamedTemplate {
  /** Jinja source. */
  source: string;
  /** Generation ends before any of these texts. */
  stopStrings: string[];
  /** Generation ends at any of these tokens, where the vocabulary has them. */
  stopTokens: string[];
}

const chatmlTurns = `{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}`;

/** Takes a system message at the front off the list: \`system\` and \`turns\`. */
const splitSystem = `{%- if messages and messages[0].role == 'system' %}
{%- set system = messages[0].content %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = '' %}
{%- set turns = messages %}
{%- endif %}`;

const alternate = `{%- if (message.role == 'user') != (loop.index0 % 2 == 0) or message.role not in ['user', 'assistant'] %}
{{- raise_exception('expected user and assistant turns one after the other, after at most one system message') }}
{%- endif %}`;

/**
 * Templates for models that come without one, by the names of the field. BOS is part of those whose models need it.
 * - `chatml`: `<|im_start|>role … <|im_end|>`
 * - `qwen_chat`: ChatML with Qwen's system message when the conversation has none
 * - `internlm2_chat`: BOS and ChatML
 * - `llama2`: `[INST] <<SYS>> … <</SYS>> … [/INST]`
 * - `llama3`: `<|start_header_id|>role<|end_header_id|> … <|eot_id|>`
 * - `mistral`: `[INST] … [/INST]`, the system message before the first user turn
 * - `alpaca`: `### Instruction: … ### Response:`
 */
export const namedTemplates: Readonly<Record<string, NamedTemplate>> = {
  chatml: { source: chatmlTurns, stopStrings: ["<|im_end|>"], stopTokens: ["<|im_end|>"] },
  qwen_chat: {
    source: `{%- if not messages or messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
${chatmlTurns}`,
    stopStrings: ["<|im_end|>", "<|endoftext|>"],
    stopTokens: ["<|im_end|>", "<|endoftext|>"],
  },
  internlm2_chat: {
    source: `{{- bos_token }}${chatmlTurns}`,
    stopStrings: ["<|im_end|>"],
    stopTokens: ["<|im_end|>", "</s>"],
  },
  llama2: {
    source: `${splitSystem}
{%- for message in turns %}
${alternate}
{%- if message.role == 'user' %}
{%- if loop.first and system %}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message.content %}
{%- else %}
{%- set content = message.content %}
{%- endif %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}
{{- ' ' + message.content.strip() + ' ' + eos_token }}
{%- endif %}
{%- endfor %}`,
    stopStrings: ["[INST]"],
    stopTokens: ["</s>"],
  },
  llama3: {
    source: `{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + (message.content or '').strip() + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}`,
    stopStrings: ["<|eot_id|>", "<|end_of_text|>"],
    stopTokens: ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
  },
  mistral: {
    source: `${splitSystem}
{{- bos_token }}
{%- for message in turns %}
${alternate}
{%- if message.role == 'user' %}
{%- if loop.first and system %}
{{- '[INST] ' + system + '\\n\\n' + message.content + ' [/INST]' }}
{%- else %}
{{- '[INST] ' + message.content + ' [/INST]' }}
{%- endif %}
{%- else %}
{{- ' ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}`,
    stopStrings: ["[INST]"],
    stopTokens: ["</s>"],
  },
  alpaca: {
    source: `${splitSystem}
{{- (system or 'Below is an instruction that describes a task. Write a response that appropriately completes the request.') + '\\n\\n' }}
{%- for message in turns %}
{%- if message.role == 'user' %}
{{- '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else %}
{{- '### Response:\\n' + message.content + eos_token + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Response:\\n' }}
{%- endif %}`,
    stopStrings: ["### Instruction:"],
    stopTokens: ["</s>", "<|endoftext|>"],
  },
};

/**
 * Finds a template: by a name among the model's own, by a name among {@link namedTemplates}, or Jinja source as it is.
 * @throws {OptionsError} a name that nobody has
 */
export function resolveTemplate(template: string, own: ReadonlyMap<string, string> = new Map()): string {
  const found =
    own.get(template) ?? (Object.hasOwn(namedTemplates, template) ? namedTemplates[template]!.source : undefined);
  if (found !== undefined) return found;
  if (template.includes("{{") || template.includes("{%")) return template;
  const known = [...new Set([...own.keys(), ...Object.keys(namedTemplates)])].join(", ");
  throw new OptionsError(
    `[applyChatTemplate] template: expected Jinja source or one of ${known}, got ${JSON.stringify(template)}`,
  );
}

const parsed = new Map<string, JinjaProgram>();
const mostParsed = 32;

/**
 * Renders a conversation with a Jinja template as transformers' `apply_chat_template(tokenize=False)`: blocks are trimmed,
 * `tojson` writes what Python's json.dumps(ensure_ascii=False) does, `strftime_now` and `raise_exception` are there,
 * `{% generation %}` is transparent. Arguments of tool calls that are JSON text of an object are parsed first.
 * Dictionaries written in a template may have text keys only.
 * @throws {FormatError} the template is not valid Jinja, or fails on this conversation
 * @throws {OptionsError} the template refuses the conversation (`raise_exception`); `data.reason` is its message
 * @see https://huggingface.co/docs/transformers/chat_templating
 */
export function renderChatTemplate(source: string, options: RenderChatTemplateOptions): string {
  const program = parseTemplate(source);
  const now = options.now ?? new Date();
  const tools = options.tools !== undefined && options.tools.length > 0 ? options.tools : null;
  const variables: Record<string, unknown> = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range,
    messages: options.messages.map((message) => plain(withParsedArguments(message))),
    tools: plain(tools),
    documents: null,
    add_generation_prompt: options.addGenerationPrompt ?? false,
    ...(options.bosToken === undefined ? {} : { bos_token: options.bosToken }),
    ...(options.eosToken === undefined ? {} : { eos_token: options.eosToken }),
    raise_exception: (reason: unknown) => {
      throw new OptionsError(`[renderChatTemplate] the template refuses this conversation: ${String(reason)}`, {
        reason: String(reason),
      });
    },
    strftime_now: (format: string) => strftime(now, format),
    ...(plain(options.variables ?? {}) as object),
  };
  try {
    return renderJinja(program, variables);
  } catch (error) {
    if (LlmError.isInstance(error)) throw error;
    throw new FormatError(
      `[renderChatTemplate] the template failed on this conversation: ${(error as Error).message}`,
      { source },
      error,
    );
  }
}

function parseTemplate(source: string): JinjaProgram {
  let program = parsed.get(source);
  if (program === undefined) {
    try {
      program = parseJinja(source);
    } catch (error) {
      throw new FormatError(
        `[renderChatTemplate] expected a Jinja template: ${(error as Error).message}`,
        { source },
        error,
      );
    }
    if (parsed.size >= mostParsed) parsed.delete(parsed.keys().next().value!);
    parsed.set(source, program);
  }
  return program;
}

/** Python's range as a list. */
function range(first: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, first] : [first, stop];
  if (step === 0) throw new FormatError("[renderChatTemplate] range: the step must not be 0");
  return Array.from({ length: Math.max(0, Math.ceil((to - from) / step)) }, (_, index) => from + index * step);
}

function withParsedArguments(message: ChatMessage): ChatMessage {
  if (message.tool_calls === undefined || message.tool_calls === null) return message;
  return {
    ...message,
    tool_calls: message.tool_calls.map((call) => ({
      ...call,
      function: { ...call.function, arguments: parseObject(call.function.arguments) },
    })),
  };
}

function parseObject(value: string | Record<string, unknown>): string | Record<string, unknown> {
  if (typeof value !== "string") return value;
  try {
    const object: unknown = JSON.parse(value);
    return typeof object === "object" && object !== null && !Array.isArray(object)
      ? (object as Record<string, unknown>)
      : value;
  } catch {
    return value;
  }
}

/** Leaves undefined keys out: a template asks `x in message` as well as `message.x is defined`. */
function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null || value instanceof Date) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, entry]) => entry !== undefined)
      .map(([key, entry]) => [key, plain(entry)]),
  );
}

const months = "January February March April May June July August September October November December".split(" ");
const days = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");

/** Python's strftime in the C locale, for the directives that templates use. */
function strftime(date: Date, format: string): string {
  const pad = (value: number, size = 2, fill = "0"): string => String(value).padStart(size, fill);
  const hour12 = date.getHours() % 12 || 12;
  const directives: Record<string, () => string> = {
    Y: () => String(date.getFullYear()),
    y: () => pad(date.getFullYear() % 100),
    m: () => pad(date.getMonth() + 1),
    B: () => months[date.getMonth()]!,
    b: () => months[date.getMonth()]!.slice(0, 3),
    d: () => pad(date.getDate()),
    e: () => pad(date.getDate(), 2, " "),
    A: () => days[date.getDay()]!,
    a: () => days[date.getDay()]!.slice(0, 3),
    H: () => pad(date.getHours()),
    I: () => pad(hour12),
    M: () => pad(date.getMinutes()),
    S: () => pad(date.getSeconds()),
    p: () => (date.getHours() < 12 ? "AM" : "PM"),
    F: () => `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`,
    T: () => `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`,
    "%": () => "%",
  };
  return format.replace(/%(-?)([A-Za-z%])/g, (whole, dash: string, letter: string) => {
    const text = directives[letter]?.();
    if (text === undefined) throw new FormatError(`[renderChatTemplate] strftime_now: ${whole} is not supported`);
    return dash === "-" ? text.replace(/^[0 ](?=.)/, "") : text;
  });
}
