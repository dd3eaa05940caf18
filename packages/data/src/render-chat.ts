import { FormatError, LlmError } from "@llm/core";
import type { ChatMessage, Tokenizer } from "@llm/models";
import type { ChatExample } from "./example.js";
import { rowFault } from "./row-fault.js";

/** Characters [start, end) of a rendered conversation that are learned with a weight. */
export interface LearnedSpan {
  /** Index of the message. */
  message: number;
  start: number;
  end: number;
  weight: number;
  /** A span of the assistant ends with the end of its turn. */
  assistant: boolean;
}

/** A rendered conversation (or its beginning) and what is learned of it. */
export interface RenderedDocument {
  text: string;
  /** In order; empty when everything is learned (`trainOn: "all"`), then `weight` says how much. */
  spans: LearnedSpan[];
  /** Weight of text outside the spans. */
  weight: number;
}

export interface RenderOptions {
  tokenizer: Tokenizer;
  template?: string | undefined;
  templateVariables?: Record<string, unknown> | undefined;
  trainOn: "assistant" | "last-assistant" | "all";
  rewrites: "split" | "error";
  reasoning: "require" | "drop";
}

/**
 * Renders a conversation and finds what is learned, by construction: the learned text of an assistant's message is what
 * follows the prompt that serving would give the model at that point (the messages before it and the generation prompt).
 *
 * Where the template shows earlier turns otherwise than it showed them when they were the last (Qwen3 and its kin leave
 * out the thinking), one text cannot serve all turns. Then the conversation gives several documents; each ends with a turn
 * as it is written when it is the last, and every turn is learned in exactly one of them. Messages after the last learned
 * one are left out.
 * @throws {FormatError} nothing to learn, or tools that the template leaves out (faults of the row); a template whose prompt does not begin its turn
 */
export function renderChat(example: ChatExample, options: RenderOptions): RenderedDocument[] {
  const { messages } = example;
  const weights = messageWeights(example, options.trainOn);
  const learned = [...weights.keys()].filter((index) => (weights[index] ?? 0) > 0);
  const render = cachedRender(example, options);
  const [tool] = example.tools ?? [];
  if (tool !== undefined && !render(messages.length, false).includes(tool.function.name))
    throw rowFault("tools", "a chat template that writes tools", "one that leaves them out");

  if (options.trainOn === "all") {
    const text = render(messages.length, false);
    const exceptions = [...weights.keys()].filter((index) => weights[index] !== undefined);
    const spans = exceptions.map((index) => spanOf(index, weights[index] as number, messages, render, options));
    for (const span of spans)
      if (!text.startsWith(render(span.message + 1, false)))
        throw rewritten(
          options,
          'messages with their own `loss` under trainOn: "all" need a template that keeps earlier turns as they were',
        );
    return [{ text, spans, weight: 1 }];
  }

  if (learned.length === 0)
    throw rowFault(
      "messages",
      "an assistant's message to learn",
      messages.map((message) => message.role).join(", ") || "no messages",
    );
  const documents: RenderedDocument[] = [];
  let pending = learned;
  while (pending.length > 0) {
    const text = render((pending.at(-1) as number) + 1, false);
    const spans = pending.flatMap((index) => {
      const end = endWithin(text, render(index + 1, false), options.tokenizer);
      return end === undefined ? [] : [{ ...spanOf(index, weights[index] as number, messages, render, options), end }];
    });
    documents.unshift({ text, spans, weight: 0 });
    pending = pending.filter((index) => !spans.some((span) => span.message === index));
    if (pending.length > 0 && options.rewrites === "error")
      throw rewritten(options, 'set rewrites: "split" (a document per turn) or trainOn: "last-assistant"');
  }
  return documents;
}

/**
 * Where a turn ends in a longer conversation, if that begins as the turn was written when it was the last. An end token that
 * the template writes only at the very end (Phi-3.5), behind the token that closes the turn, does not count as a change.
 */
function endWithin(text: string, upTo: string, tokenizer: Tokenizer): number | undefined {
  if (text.startsWith(upTo)) return upTo.length;
  const endText = tokenizer.eosTokenId === undefined ? undefined : tokenizer.idToToken(tokenizer.eosTokenId);
  if (!endText || !upTo.endsWith(endText)) return undefined;
  const turn = upTo.slice(0, -endText.length);
  const closed = [...tokenizer.specialTokens.keys()].some((token) => turn.trimEnd().endsWith(token));
  return closed && text.startsWith(turn) ? turn.length : undefined;
}

function rewritten(options: RenderOptions, advice: string): FormatError {
  return new FormatError(
    `[loadDataset] the chat template${options.template ? ` "${options.template.slice(0, 40)}"` : ""} changes earlier turns when later ones follow ` +
      `(expected each turn to stay as it was written); ${advice}`,
    { kind: "template-rewrites" },
  );
}

/** Weight of each message; undefined = as the rest of the text (only under `all`). */
function messageWeights(example: ChatExample, trainOn: RenderOptions["trainOn"]): (number | undefined)[] {
  const { messages } = example;
  const last = messages.findLastIndex((message) => message.role === "assistant");
  return messages.map((message, index) => {
    if (message.loss !== undefined) return Number(message.loss);
    if (trainOn === "all") return undefined;
    return message.role === "assistant" && (trainOn === "assistant" || index === last) ? 1 : 0;
  });
}

type Render = (count: number, addGenerationPrompt: boolean, variables?: Record<string, unknown>) => string;

function cachedRender(example: ChatExample, options: RenderOptions): Render {
  const plain = example.messages.map(({ loss: _loss, ...message }): ChatMessage => message);
  const cache = new Map<string, string>();
  return (count, addGenerationPrompt, variables) => {
    const key = `${count}/${addGenerationPrompt}/${variables === undefined ? "" : JSON.stringify(variables)}`;
    let text = cache.get(key);
    if (text === undefined) {
      text = options.tokenizer.applyChatTemplate(plain.slice(0, count), {
        addGenerationPrompt,
        ...(example.tools ? { tools: example.tools } : {}),
        ...(options.template === undefined ? {} : { template: options.template }),
        ...(options.templateVariables || variables
          ? { variables: { ...options.templateVariables, ...variables } }
          : {}),
      });
      cache.set(key, text);
    }
    return text;
  };
}

function spanOf(
  index: number,
  weight: number,
  messages: readonly ChatMessage[],
  render: Render,
  options: RenderOptions,
): LearnedSpan {
  const message = messages[index] as ChatMessage;
  const upTo = render(index + 1, false);
  const assistant = message.role === "assistant";
  const before = index > 0 ? render(index, assistant) : assistant ? emptyPrompt(render) : "";
  let start = upTo.startsWith(before) ? before.length : -1;
  const thinks = Boolean(message.reasoning_content) || /<think>/.test(message.content ?? "");
  // The prompt that asks for a turn of this kind. An empty thinking block that the template can put into the prompt is no answer.
  if (assistant && index > 0 && (start < 0 || (!thinks && upTo.includes("</think>", start)))) {
    for (const variable of ["enable_thinking", "thinking"]) {
      if (options.templateVariables?.[variable] !== undefined) continue;
      const asked = render(index, true, { [variable]: thinks });
      if (asked.length > start && upTo.startsWith(asked)) start = asked.length;
    }
  }
  if (start < 0) throw promptMismatch(before, upTo, index, assistant);
  if (start === upTo.length)
    throw new FormatError(
      `[loadDataset] the chat template writes nothing for the ${assistant ? "assistant's turn" : `message of role "${message.role}"`} (message ${index}); expected its content`,
      {
        kind: "degenerate-mask",
        message: index,
      },
    );
  const reasoning = (message.reasoning_content || /<think>([^]*?)<\/think>/.exec(message.content ?? "")?.[1])?.trim();
  if (reasoning && weight > 0 && options.reasoning === "require" && !upTo.includes(reasoning, start))
    throw new FormatError(
      `[loadDataset] message ${index} has reasoning, but the chat template does not write it, so it would not be learned; ` +
        `expected a template that does (or reasoning_content put into content), or reasoning: "drop"`,
      { kind: "reasoning-lost", message: index },
    );
  const calls = message.tool_calls ?? [];
  if (weight > 0 && !calls.every((call) => upTo.includes(call.function.name, start)))
    throw rowFault(
      `messages.${index}.tool_calls`,
      "a chat template that writes tool calls",
      "one that leaves them out",
    );
  return { message: index, start, end: upTo.length, weight, assistant };
}

/** The prompt before the first message; many templates cannot render an empty conversation. */
function emptyPrompt(render: Render): string {
  try {
    return render(0, true);
  } catch (cause) {
    if (LlmError.isInstance(cause, "UNSUPPORTED")) throw cause;
    const fault = rowFault(
      "messages.0.role",
      "a message before the assistant's first (the template needs one)",
      "assistant",
    );
    fault.cause = cause;
    throw fault;
  }
}

function promptMismatch(before: string, upTo: string, index: number, assistant: boolean): FormatError {
  let common = 0;
  while (common < before.length && before[common] === upTo[common]) common += 1;
  const show = (text: string): string => JSON.stringify(text.slice(Math.max(0, common - 20), common + 40));
  return new FormatError(
    `[loadDataset] the chat template's ${assistant ? "generation prompt" : "rendering"} before message ${index} must begin the rendered turn: ` +
      `expected ${show(before)}, got ${show(upTo)}. Learning that turn would teach what serving never asks; ` +
      `use another \`template\` (for example "chatml"), or templateVariables that make the two agree`,
    { kind: "generation-prompt", message: index },
  );
}
