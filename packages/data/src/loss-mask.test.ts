import { LlmError, OptionsError } from "@llm/core";
import { describe, expect, it } from "vitest";
import { CharTokenizer, learnedText, type Template, templates } from "../test/char-tokenizer.js";
import { type DataSource, loadDataset, type LoadDatasetOptions } from "./index.js";

const dialog = [
  { role: "user", content: "Hi" },
  { role: "assistant", content: "Hello!" },
  { role: "user", content: "你好" },
  { role: "assistant", content: "你好呀🙂" },
];

function load(
  messages: unknown[],
  template: Template,
  options: Partial<LoadDatasetOptions> = {},
  tokenizer = new CharTokenizer({ template }),
) {
  const data = loadDataset({ rows: [{ messages }] } satisfies DataSource, { tokenizer, packing: "none", ...options });
  return {
    data,
    tokenizer,
    learned: data.documents.map(({ ids, lossWeights }) => learnedText(tokenizer, ids, lossWeights)),
  };
}

function failure(run: () => unknown): LlmError {
  try {
    run();
  } catch (error) {
    if (LlmError.isInstance(error)) return error;
    throw error;
  }
  throw new Error("expected an error");
}

describe("loss mask of conversations", () => {
  it("learns each assistant turn and its end token, and nothing else", () => {
    const { learned, data, tokenizer } = load(dialog, templates.chatml);
    expect(learned).toEqual(["Hello!<|im_end|>|你好呀🙂<|im_end|>"]);
    expect(data.documents[0]?.ids).toEqual(tokenizer.encode(templates.chatml(dialog, {}), { addSpecialTokens: false }));
  });

  it("labels are the next tokens, aligned with the prompt's last token", () => {
    const { data, tokenizer } = load(dialog.slice(0, 2), templates.chatml);
    const { ids_T, labels_T } = data.at(0);
    const text = tokenizer.decode(ids_T);
    const first = labels_T.findIndex((label) => label !== -100);
    expect(text.endsWith("assistant\nHello!<|im_end|>\n")).toBe(true);
    expect(tokenizer.decode(ids_T.subarray(0, first + 1)).endsWith("assistant\n")).toBe(true);
    expect(tokenizer.decode(labels_T.filter((label) => label !== -100))).toBe("Hello!<|im_end|>");
    expect(labels_T.at(-1)).toBe(-100);
  });

  it("works where the end token is the text's end token and there is no generation prompt", () => {
    expect(load(dialog, templates.llama2).learned).toEqual([" Hello!</s>| 你好呀🙂</s>"]);
  });

  it("takes last-assistant and all", () => {
    expect(load(dialog, templates.chatml, { trainOn: "last-assistant" }).learned).toEqual(["你好呀🙂<|im_end|>"]);
    expect(load(dialog, templates.chatml, { trainOn: "all" }).learned).toEqual([templates.chatml(dialog, {})]);
  });

  it("lets a message's loss override the rule, also as a weight", () => {
    const messages = [
      { ...dialog[0], loss: true },
      { ...dialog[1], loss: false },
      dialog[2],
      { ...dialog[3], loss: 0.5 },
    ];
    const { learned, data } = load(messages, templates.chatml);
    expect(learned).toEqual(["<|im_start|>user\nHi<|im_end|>\n|你好呀🙂<|im_end|>"]);
    const { labels_T, lossWeights_T } = data.at(0);
    const weights = Array.from(labels_T, (label, t) => (label === -100 ? -1 : (lossWeights_T?.[t] as number)));
    expect(new Set(weights)).toEqual(new Set([-1, 1, 0.5]));
    expect(weights.filter((weight) => weight === 0.5)).toHaveLength(5);
  });

  it("excludes a message from trainOn all", () => {
    expect(
      load([dialog[0], { ...dialog[1], loss: false }, dialog[2], dialog[3]], templates.chatml, { trainOn: "all" })
        .learned,
    ).toEqual([
      "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n|<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n你好呀🙂<|im_end|>\n",
    ]);
  });

  it("leaves messages after the last learned one out", () => {
    const { data, tokenizer } = load(dialog.slice(0, 3), templates.chatml);
    expect(tokenizer.decode(data.at(0).ids_T)).toBe(templates.chatml(dialog.slice(0, 2), {}));
  });

  it("splits a conversation whose template rewrites earlier turns, learning each turn once as it was written", () => {
    const thinking = [
      dialog[0],
      { ...dialog[1], reasoning_content: "greet" },
      dialog[2],
      { ...dialog[3], reasoning_content: "in Chinese" },
    ];
    const { learned, data } = load(thinking, templates.qwen3);
    expect(learned).toEqual([
      "<think>\ngreet\n</think>\n\nHello!<|im_end|>",
      "<think>\nin Chinese\n</think>\n\n你好呀🙂<|im_end|>",
    ]);
    expect(data.report()).toMatchObject({ splitConversations: 1, extraDocuments: 1 });
    const refused = failure(() => load(thinking, templates.qwen3, { rewrites: "error" }));
    expect(refused.data["kind"]).toBe("template-rewrites");
    expect(refused.message).toContain("last-assistant");
    expect(load(thinking, templates.qwen3, { trainOn: "last-assistant", rewrites: "error" }).learned).toHaveLength(1);
  });

  it("keeps turns of one tool loop in one document", () => {
    const loop = [
      { role: "user", content: "weather?" },
      {
        role: "assistant",
        content: null,
        reasoning_content: "call",
        tool_calls: [{ function: { name: "weather", arguments: '{"city":"Oslo"}' } }],
      },
      { role: "tool", content: "rain" },
      { role: "assistant", content: "It rains.", reasoning_content: "answer" },
    ];
    expect(load(loop, templates.qwen3).learned).toEqual([
      '<think>\ncall\n</think>\n\n<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call><|im_end|>|<think>\nanswer\n</think>\n\nIt rains.<|im_end|>',
    ]);
  });

  it("does not learn an empty thinking block that the template can put into the prompt", () => {
    expect(load(dialog, templates.qwen3).learned).toEqual(["Hello!<|im_end|>", "你好呀🙂<|im_end|>"]);
    expect(load(dialog.slice(0, 2), templates.qwen3, { templateVariables: { enable_thinking: true } }).learned).toEqual(
      ["<think>\n\n</think>\n\nHello!<|im_end|>"],
    );
  });

  it("refuses a template that never ends the assistant's turn, and closes it on request", () => {
    const refused = failure(() => load(dialog, templates.plain));
    expect(refused.code).toBe("FORMAT");
    expect(refused.data["kind"]).toBe("end-of-turn");
    expect(refused.message).toContain("append-eos");
    const { learned, data } = load(dialog, templates.plain, { endOfTurn: "append-eos" });
    expect(learned).toEqual(["Hello!\n\n|你好呀🙂\n\n</s>"]);
    expect(data.report().appendedEos).toBe(1);
  });

  it("learns the next turn's opening token as the stop where the template has no other", () => {
    expect(load(dialog, templates.glm, { endOfTurn: "append-eos" }).learned).toEqual(["Hello!<|user|>|你好呀🙂</s>"]);
  });

  it("refuses a generation prompt that completed turns do not have", () => {
    const refused = failure(() => load(dialog, templates.r1));
    expect(refused.data["kind"]).toBe("generation-prompt");
    expect(refused.message).toContain("<think>");
  });

  it("refuses masks that cover everything or nothing", () => {
    expect(failure(() => load(dialog, () => "Hello!</s>")).message).toContain(
      "writes nothing for the assistant's turn",
    );
    const everything: Template = (messages) =>
      messages.map((message) => (message.role === "assistant" ? `${message.content}</s>` : "")).join("");
    expect(failure(() => load(dialog, everything)).data["kind"]).toBe("degenerate-mask");
    expect(failure(() => load([dialog[0]], templates.chatml)).message).toContain("an assistant's message to learn");
    expect(failure(() => load([dialog[0], { ...dialog[1], loss: false }], templates.chatml)).data["key"]).toBe(
      "messages",
    );
  });

  it("finds the prompt that asks for a turn without thinking where the template's default asks for thinking", () => {
    const nemotron: Template = (messages, { addGenerationPrompt, variables }) =>
      messages
        .map((message) =>
          message.role === "assistant"
            ? `<|assistant|><think>${message.reasoning_content ?? ""}</think>${message.content}</s>`
            : `<|user|>${message.content}`,
        )
        .join("") +
      (addGenerationPrompt ? `<|assistant|><think>${variables?.["enable_thinking"] === false ? "</think>" : ""}` : "");
    expect(load(dialog, nemotron).learned).toEqual(["Hello!</s>|你好呀🙂</s>"]);
    expect(load([dialog[0], { ...dialog[1], reasoning_content: "why" }], nemotron).learned).toEqual([
      "why</think>Hello!</s>",
    ]);
  });

  it("keeps one document where only an end token at the very end differs", () => {
    const phi: Template = (messages, { addGenerationPrompt }) =>
      messages.map((message) => `<|${message.role}|>${message.content}<|im_end|>\n`).join("") +
      (addGenerationPrompt ? "<|assistant|>" : "</s>");
    expect(load(dialog, phi).learned).toEqual(["Hello!<|im_end|>|你好呀🙂<|im_end|>\n</s>"]);
  });

  it("refuses to lose reasoning without a word", () => {
    const messages = [dialog[0], { ...dialog[1], reasoning_content: "greet" }];
    expect(failure(() => load(messages, templates.llama2)).data["kind"]).toBe("reasoning-lost");
    const stripping: Template = (list, options) =>
      templates.chatml(
        list.map((message) => ({ ...message, content: message.content?.split("</think>").at(-1) ?? null })),
        options,
      );
    expect(
      failure(() => load([dialog[0], { role: "assistant", content: "<think>greet</think>Hello!" }], stripping)).data[
        "kind"
      ],
    ).toBe("reasoning-lost");
    expect(load(messages, templates.llama2, { reasoning: "drop" }).learned).toEqual([" Hello!</s>"]);
  });

  it("refuses a template that leaves tools or tool calls out, row by row", () => {
    const call = [
      dialog[0],
      { role: "assistant", content: null, tool_calls: [{ function: { name: "clock", arguments: {} } }] },
    ];
    const deaf: Template = (messages, options) =>
      templates.chatml(
        messages.map(({ tool_calls: _calls, ...message }) => message),
        { ...options, tools: undefined } as never,
      );
    expect(failure(() => load(call, deaf)).data["key"]).toBe("messages.1.tool_calls");
    const tools = [{ name: "clock", parameters: {} }];
    const rows = [{ messages: dialog, tools }, { messages: dialog }, { messages: call }];
    const report = loadDataset(
      { rows },
      { tokenizer: new CharTokenizer({ template: deaf }), onBadRow: "skip" },
    ).report();
    expect(report.rejected.map(({ index, key }) => [index, key])).toEqual([
      [0, "tools"],
      [2, "messages.1.tool_calls"],
    ]);
  });

  it("takes a template's refusal as a fault of the row", () => {
    const strict: Template = (messages, options) => {
      if (messages.some((message, index) => (message.role === "user") !== (index % 2 === 0)))
        throw new OptionsError("[applyChatTemplate] refused", { reason: "roles must alternate" });
      return templates.chatml(messages, options);
    };
    const rows = [{ messages: dialog }, { messages: [dialog[0], ...dialog] }, { messages: [dialog[1], ...dialog] }];
    const report = loadDataset(
      { rows },
      { tokenizer: new CharTokenizer({ template: strict }), onBadRow: "skip" },
    ).report();
    expect(report.rejected.map(({ index }) => index)).toEqual([1, 2]);
  });

  it("refuses two begin tokens", () => {
    expect(
      failure(() => load(dialog, (messages, options) => `<s><s>${templates.chatml(messages, options)}`)).data["kind"],
    ).toBe("double-bos");
  });

  it("finds boundaries by offsets where tokens merge across them, and does not learn the merged token", () => {
    const tokenizer = new CharTokenizer({ template: templates.chatml, merges: ["\n\n"] });
    const { learned, data } = load(
      [dialog[0], { role: "assistant", content: "\nHello" }],
      templates.chatml,
      {},
      tokenizer,
    );
    expect(learned).toEqual(["Hello<|im_end|>"]);
    expect(data.report().mergedBoundaries).toBe(1);
  });

  it("finds boundaries by prefixes where the tokenizer changes the text", () => {
    const tokenizer = new CharTokenizer({ template: templates.chatml, lowerCase: true });
    expect(load(dialog, templates.chatml, {}, tokenizer).learned).toEqual(["hello!<|im_end|>|你好呀🙂<|im_end|>"]);
    const merging = new CharTokenizer({ template: templates.chatml, lowerCase: true, merges: ["\n\n"] });
    expect(
      failure(() => load([dialog[0], { role: "assistant", content: "\nHello" }], templates.chatml, {}, merging)).data[
        "kind"
      ],
    ).toBe("token-prefix");
  });

  it("names the missing template", () => {
    expect(failure(() => loadDataset({ rows: [{ messages: dialog }] }, { tokenizer: new CharTokenizer() })).code).toBe(
      "UNSUPPORTED",
    );
    expect(load(dialog, templates.plain, { template: "chatml" }).learned).toEqual([
      "Hello!<|im_end|>|你好呀🙂<|im_end|>",
    ]);
  });
});

describe("plain text and completions", () => {
  const tokenizer = new CharTokenizer({ bos: true });
  const learned = (rows: unknown[], options: Partial<LoadDatasetOptions> = {}) =>
    loadDataset({ rows }, { tokenizer, packing: "none", ...options }).documents.map(({ ids, lossWeights }) => [
      tokenizer.decode(ids),
      learnedText(tokenizer, ids, lossWeights),
    ]);

  it("learns a text whole, with its end token, and writes begin and end once", () => {
    expect(learned([{ text: "abc" }, { text: "<s>abc</s>" }])).toEqual([
      ["<s>abc</s>", "<s>abc</s>"],
      ["<s>abc</s>", "<s>abc</s>"],
    ]);
  });

  it("learns a completion and its end token, not its prompt", () => {
    expect(learned([{ prompt: "2+2=", completion: "4" }])).toEqual([["<s>2+2=4</s>", "4</s>"]]);
    expect(learned([{ prompt: "2+2=", completion: "4" }], { trainOn: "all" })).toEqual([
      ["<s>2+2=4</s>", "<s>2+2=4</s>"],
    ]);
  });
});
