import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { CharTokenizer, learnedText, templates } from "../test/char-tokenizer.js";
import { type Dataset, loadDataset, loadExamples, permutation } from "./index.js";

const assets = process.env["LLM_ASSETS"] ?? fileURLToPath(new URL("../../../../shared/assets", import.meta.url));
const factory = join(assets, "data-llamafactory");
const present = existsSync(factory);
if (!present) console.log(`skipped: no data sets in ${factory} (set LLM_ASSETS)`);
const tokenizer = new CharTokenizer({ template: templates.chatml });

/** What chatml teaches of a conversation: its assistant's turns, up to and with the end token. */
function answers(data: Dataset, index: number): string {
  const { ids, lossWeights } = data.documents[index] as Dataset["documents"][number];
  return learnedText(tokenizer, ids, lossWeights);
}

describe.skipIf(!present)("real data sets", () => {
  it.each([
    ["alpaca_en_demo.json", "alpaca", 999],
    ["alpaca_zh_demo.json", "alpaca", 1000],
    ["identity.json", "alpaca", 91],
    ["glaive_toolcall_en_demo.json", "sharegpt", 300],
    ["glaive_toolcall_zh_demo.json", "sharegpt", 300],
    ["v1_sft_demo.jsonl", "messages", 500],
    ["c4_demo.jsonl", "text", 300],
  ])("%s loads as %s with every row", (name, format, rows) => {
    const data = loadDataset(join(factory, name), { tokenizer, maxTokens: 16_384, overlong: "split" });
    const report = data.report();
    expect(report.sources).toMatchObject([{ format, rows, rejected: 0 }]);
    expect(new Set(data.documents.map((document) => document.row)).size).toBe(rows);
    expect(report.truncated.documents).toBe(0);
    expect([...data.batches({ batchSize: 8 })].reduce((sum, batch) => sum + batch.ids_T.length, 0)).toBe(report.tokens);
  });

  it("learns exactly the answers of alpaca", () => {
    const path = join(factory, "alpaca_zh_demo.json");
    const data = loadDataset(path, { tokenizer, maxTokens: 65_536, packing: "none" });
    const { examples } = loadExamples(path);
    for (const [index, example] of examples.entries())
      if (example.kind === "chat") expect(answers(data, index)).toBe(`${example.messages.at(-1)?.content}<|im_end|>`);
  });

  it("learns calls and answers of tool conversations, not observations", () => {
    const path = join(factory, "glaive_toolcall_en_demo.json");
    const data = loadDataset(path, { tokenizer, maxTokens: 65_536, packing: "none" });
    const { examples } = loadExamples(path);
    let calls = 0;
    for (const [index, example] of examples.entries()) {
      if (example.kind !== "chat") throw new Error("expected conversations");
      const turns = example.messages.filter((message) => message.role === "assistant");
      calls += turns.filter((message) => message.tool_calls).length;
      expect(answers(data, index).split("<|im_end|>")).toHaveLength(turns.length + 1);
      for (const message of example.messages)
        if (message.role === "tool") expect(answers(data, index)).not.toContain(`tool\n${message.content}`);
    }
    expect(calls).toBe(211);
  });

  it("reads reasoning and tool calls written as parts; a rewriting template splits the conversations", () => {
    const path = join(factory, "reason_tool_use_demo_50.jsonl");
    const thinking = new CharTokenizer({ template: templates.qwen3 });
    const { examples } = loadExamples(path);
    const turns = examples
      .flatMap((example) => (example.kind === "chat" ? example.messages : []))
      .filter((message) => message.role === "assistant");
    const data = loadDataset(path, { tokenizer: thinking, maxTokens: 65_536, packing: "none" });
    expect(data.report().splitConversations).toBeGreaterThan(0);
    expect(
      data.documents
        .map(({ ids, lossWeights }) => learnedText(thinking, ids, lossWeights).split("<|im_end|>").length - 1)
        .reduce((sum, count) => sum + count),
    ).toBe(turns.length);
  });

  it("packs a whole text file by windows that predict every token once", () => {
    const data = loadDataset(join(factory, "wiki_demo.txt"), { tokenizer, maxTokens: 2048, overlong: "split" });
    const { windows } = data.report().windowed;
    expect(data.trainedTokenCount).toBe(data.tokenCount - windows);
    expect(data.report().fill).toBeGreaterThan(0.99);
  });

  it("refuses preference files with a hint", () => {
    for (const name of ["dpo_en_demo.json", "kto_en_demo.json", "v1_dpo_demo.jsonl"])
      expect(() => loadDataset(join(factory, name), { tokenizer })).toThrow(/preference data/);
  });

  it("mixes two languages by weight and packs them tightly without shared documents", () => {
    const sources = [
      { path: join(factory, "alpaca_en_demo.json"), weight: 1 },
      { path: join(factory, "alpaca_zh_demo.json"), weight: 3 },
    ];
    const data = loadDataset(sources, { tokenizer, maxTokens: 4096, mix: "interleave-under" });
    expect([0, 1].map((source) => data.documents.filter((document) => document.source === source).length)).toEqual([
      333, 1000,
    ]);
    expect(data.report().fill).toBeGreaterThan(0.95);
    expect(data.order(0)).toEqual(permutation(data.length, 0, 1));
  });
});

const ruozhiba = join(assets, "data-ruozhiba");
describe.skipIf(!existsSync(ruozhiba))("ruozhiba", () => {
  it("loads questions and answers, and posts by a renamed column", () => {
    expect(loadDataset(join(ruozhiba, "ruozhiba_qa.json"), { tokenizer }).report().sources).toMatchObject([
      { format: "alpaca", rows: 1475, rejected: 0 },
    ]);
    const posts = loadDataset(
      { path: join(ruozhiba, "ruozhiba-post-annual.json"), columns: { text: "content" } },
      { tokenizer },
    );
    expect(posts.report().sources[0]?.format).toBe("text");
  });
});
