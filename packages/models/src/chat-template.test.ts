import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { LlmError } from "@llm/core";
import { describe, expect, test } from "vitest";
import { namedTemplates, renderChatTemplate, resolveTemplate } from "./chat-template.js";
import type { ChatMessage, Tool } from "./types.js";

const assets = process.env["LLM_ASSETS"] ?? fileURLToPath(new URL("../../../../shared/assets", import.meta.url));
const templates = join(assets, "tpl-llamacpp");
const there = existsSync(templates);
if (!there) console.log(`skipped: no chat templates in ${templates} (set LLM_ASSETS)`);

interface Golden {
  name: string;
  source: string | null;
  conversation: string;
  prompt: boolean;
  text?: string;
  error?: string;
}

const goldens = JSON.parse(
  readFileSync(new URL("./tokenizer/fixtures/chat-template-goldens.json", import.meta.url), "utf8"),
) as { now: string; tools: Tool[]; conversations: Record<string, ChatMessage[]>; cases: Golden[] };
const tools = goldens.tools;

function render(source: string, conversation: string, prompt: boolean): string {
  return renderChatTemplate(source, {
    messages: goldens.conversations[conversation]!,
    tools: conversation === "tools" ? tools : undefined,
    addGenerationPrompt: prompt,
    bosToken: "<s>",
    eosToken: "</s>",
    now: new Date(goldens.now),
  });
}

function differences(cases: Golden[]): unknown[] {
  return cases.flatMap((golden) => {
    const source = golden.source ?? readFileSync(join(templates, golden.name), "utf8");
    let text: string | undefined;
    let failure: unknown;
    try {
      text = render(source, golden.conversation, golden.prompt);
    } catch (error) {
      failure = error;
    }
    const same = golden.error === undefined ? text === golden.text : LlmError.isInstance(failure);
    return same ? [] : [{ ...golden, got: text ?? String(failure) }];
  });
}

describe("against transformers' apply_chat_template", () => {
  const inline = goldens.cases.filter((golden) => golden.source !== null);
  const files = goldens.cases.filter((golden) => golden.source === null);

  test("blocks, loops, filters, JSON, dates and variables render the same text", () => {
    expect(inline.length).toBeGreaterThan(50);
    expect(differences(inline)).toEqual([]);
  });

  test.skipIf(!there)("Qwen2.5, Qwen3, Llama 3, Mistral, Phi and DeepSeek templates render the same text", () => {
    expect(files.length).toBeGreaterThan(50);
    expect(differences(files)).toEqual([]);
  });
});

describe.skipIf(!there)("real templates", () => {
  /** Templates that cannot render a plain conversation, and why. */
  const failing: Record<string, RegExp> = {
    "ByteDance-Seed-OSS.jinja": /Object keys must be strings/, // a dictionary with integer keys, which the engine lacks
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja": /for loop: got NullValue/, // iterates tools; fails in transformers too
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": /for loop: got NullValue/, // iterates tools; fails in transformers too
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja": /for loop: got NullValue/, // as above
    "fireworks-ai-llama-3-firefunction-v2.jinja": /undefined values/, // wants a variable `functions`; fails in transformers too
    "meetkai-functionary-medium-v3.1.jinja": /filter "selectattr" to type: NullValue/, // filters tools = none lazily in Python
  };

  test("every one renders a conversation with a generation prompt, or is known to fail", () => {
    const unexpected: string[] = [];
    const names = readdirSync(templates).filter((name) => name.endsWith(".jinja"));
    expect(names.length).toBeGreaterThan(50);
    for (const name of names) {
      const source = readFileSync(join(templates, name), "utf8");
      try {
        const text = render(source, "one turn", true);
        if (!text.includes("When is high water?")) unexpected.push(`${name}: the message is missing`);
        if (Object.hasOwn(failing, name)) unexpected.push(`${name}: renders now`);
      } catch (error) {
        if (!LlmError.isInstance(error) || !failing[name]?.test(error.message))
          unexpected.push(`${name}: ${String(error)}`);
      }
    }
    expect(unexpected).toEqual([]);
  });
});

describe("named templates", () => {
  const turns: ChatMessage[] = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "Hi" },
    { role: "assistant", content: "Hello." },
    { role: "user", content: "Bye" },
  ];
  const show = (name: string, messages = turns, addGenerationPrompt = true): string =>
    renderChatTemplate(resolveTemplate(name), { messages, addGenerationPrompt, bosToken: "<s>", eosToken: "</s>" });

  test.each([
    [
      "chatml",
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    ],
    [
      "internlm2_chat",
      "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    ],
    ["llama2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]"],
    [
      "llama3",
      "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ],
    ["mistral", "<s>[INST] Be brief.\n\nHi [/INST] Hello.</s>[INST] Bye [/INST]"],
    [
      "alpaca",
      "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye\n\n### Response:\n",
    ],
  ])("%s", (name, text) => {
    expect(show(name)).toBe(text);
    expect(namedTemplates[name]!.stopTokens.length).toBeGreaterThan(0);
  });

  test("qwen_chat has a system message of its own when there is none", () => {
    expect(show("qwen_chat")).toBe(show("chatml"));
    expect(show("qwen_chat", turns.slice(1, 2))).toBe(
      "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  test("templates with fixed turns refuse others", () => {
    for (const name of ["llama2", "mistral"]) {
      expect(() => show(name, [{ role: "assistant", content: "a" }])).toThrow(
        /refuses this conversation: expected user and assistant/,
      );
      expect(() => show(name, [{ role: "tool", content: "a" }])).toThrow(/refuses/);
    }
  });
});

describe("rendering", () => {
  const one: ChatMessage[] = [{ role: "user", content: "x" }];

  test("arguments of tool calls given as text are parsed when they are an object", () => {
    const call = (args: string): string =>
      renderChatTemplate("{{ messages[0].tool_calls[0].function.arguments | tojson }}", {
        messages: [{ role: "assistant", content: null, tool_calls: [{ function: { name: "f", arguments: args } }] }],
      });
    expect(call('{"a":1,"b":"é"}')).toBe('{"a": 1, "b": "é"}');
    expect(call("not json")).toBe('"not json"');
    expect(call("3")).toBe('"3"');
  });

  test("keys that are undefined are not there", () => {
    const message = { role: "user", content: "x", tool_calls: undefined } as unknown as ChatMessage;
    expect(
      renderChatTemplate("{{ 'tool_calls' in messages[0] }} {{ tools is none }}", { messages: [message], tools: [] }),
    ).toBe("False True");
  });

  test("variables win over what is set otherwise", () => {
    const variables = { add_generation_prompt: "mine", enable_thinking: false, range: 3 };
    expect(
      renderChatTemplate("{{ add_generation_prompt }} {{ enable_thinking }} {{ range }}", { messages: one, variables }),
    ).toBe("mine False 3");
  });

  test("a template that raises is an OptionsError with its reason, a broken one a FormatError", () => {
    const code = (source: string): unknown => {
      try {
        return renderChatTemplate(source, { messages: one });
      } catch (error) {
        return LlmError.isInstance(error) ? [error.code, error.data["reason"]] : error;
      }
    };
    expect(code("{{ raise_exception('roles!') }}")).toEqual(["OPTIONS", "roles!"]);
    expect(code("{% for x in %}")).toEqual(["FORMAT", undefined]);
    expect(code("{{ 1 + none }}")).toEqual(["FORMAT", undefined]);
    expect(code("{{ strftime_now('%Q') }}")).toEqual(["FORMAT", undefined]);
  });
});
