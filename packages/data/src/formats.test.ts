import { LlmError } from "@llm/core";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import * as v from "valibot";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CharTokenizer, templates } from "../test/char-tokenizer.js";
import { dataFormats, defineFormat, loadDataset, loadExamples } from "./index.js";

const tokenizer = new CharTokenizer({ template: templates.chatml });
let folder: string;
beforeAll(() => void (folder = mkdtempSync(join(tmpdir(), "llm-data-"))));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
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

/** One dialog in every format that can hold it. */
const sameDialog: Record<string, Record<string, unknown>> = {
  alpaca: { instruction: "Bye", output: "See you", system: "Be kind.", history: [["Hi", "Hello"]] },
  sharegpt: {
    system: "Be kind.",
    conversations: [
      { from: "human", value: "Hi" },
      { from: "gpt", value: "Hello" },
      { from: "human", value: "Bye" },
      { from: "gpt", value: "See you" },
    ],
  },
  messages: {
    messages: [
      { role: "system", content: "Be kind." },
      { role: "user", content: "Hi" },
      { role: "assistant", content: "Hello" },
      { role: "user", content: [{ type: "text", text: "Bye" }] },
      { role: "assistant", content: "See you" },
    ],
  },
  conversation: {
    conversation: [
      { system: "Be kind.", input: "Hi", output: "Hello" },
      { input: "Bye", output: "See you" },
    ],
  },
  "query-response": { query: "Bye", response: "See you", system: "Be kind.", history: [["Hi", "Hello"]] },
};

describe("every format", () => {
  it.each([...dataFormats.values()])("$name refuses a row without its required columns by naming one", (format) => {
    const required = Object.keys(format.columns).filter((column) => format.columns[column] === "required");
    const error = failure(() => format.parse({}));
    expect(error.data["rowFault"]).toBe(true);
    expect(required).toContain(error.data["key"]);
    expect(format.matches({})).toBe(false);
  });

  it("gives the same ids and labels for the same dialog", () => {
    const batches = Object.values(sameDialog).map((row) => loadDataset({ rows: [row] }, { tokenizer }).at(0));
    for (const batch of batches) expect(batch).toEqual(batches[0]);
    expect(tokenizer.decode(batches[0]?.ids_T ?? [])).toContain("<|im_start|>system\nBe kind.<|im_end|>");
  });

  it.each(Object.entries(sameDialog))("%s is found by its columns", (name, row) => {
    expect(loadExamples({ rows: [row] }).format.name).toBe(name);
  });
});

describe("formats", () => {
  it("joins alpaca's instruction and input by a line break", () => {
    const { examples } = loadExamples({ rows: [{ instruction: "Add.", input: "1 2", output: "3" }] });
    expect(examples[0]).toEqual({
      kind: "chat",
      messages: [
        { role: "user", content: "Add.\n1 2" },
        { role: "assistant", content: "3" },
      ],
    });
  });

  it("reads sharegpt's tools, function calls and observations", () => {
    const { examples } = loadExamples({
      rows: [
        {
          conversations: [
            { from: "human", value: "time?" },
            { from: "function_call", value: '{"name": "clock", "arguments": {"zone": "UTC"}}' },
            { from: "observation", value: "12:00" },
            { from: "gpt", value: "Noon." },
          ],
          tools: '[{"name": "clock", "description": "tells the time", "parameters": {"type": "object"}}]',
        },
      ],
    });
    expect(examples[0]).toEqual({
      kind: "chat",
      messages: [
        { role: "user", content: "time?" },
        {
          role: "assistant",
          content: "",
          tool_calls: [{ type: "function", function: { name: "clock", arguments: { zone: "UTC" } } }],
        },
        { role: "tool", content: "12:00" },
        { role: "assistant", content: "Noon." },
      ],
      tools: [
        {
          type: "function",
          function: { name: "clock", description: "tells the time", parameters: { type: "object" } },
        },
      ],
    });
  });

  it("reads sharegpt rows with role and content", () => {
    const { examples } = loadExamples({
      rows: [
        {
          conversations: [
            { role: "user", content: "a" },
            { role: "assistant", content: "b", loss: false },
          ],
        },
      ],
    });
    expect(examples[0]).toMatchObject({
      messages: [
        { role: "user", content: "a" },
        { role: "assistant", content: "b", loss: false },
      ],
    });
  });

  it("reads message parts of text, reasoning and tool calls, and refuses images", () => {
    const content = [
      { type: "reasoning", value: "hm" },
      { type: "tool_call", value: '{"name": "f", "arguments": "{\\"a\\": 1}"}' },
    ];
    const { examples } = loadExamples({
      rows: [
        {
          messages: [
            { role: "user", content: "q" },
            { role: "assistant", content, loss_weight: 0.5 },
          ],
        },
      ],
    });
    expect(examples[0]).toMatchObject({
      messages: [
        {},
        {
          content: "",
          reasoning_content: "hm",
          loss: 0.5,
          tool_calls: [{ function: { name: "f", arguments: { a: 1 } } }],
        },
      ],
    });
    const image = failure(() =>
      loadExamples({ rows: [{ messages: [{ role: "user", content: [{ type: "image_url", image_url: {} }] }] }] }),
    );
    expect(image.data["key"]).toBe("messages.0.content.0");
  });

  it("reads XTuner's output_with_loss as a boolean and its pre-training rows as text", () => {
    const { examples } = loadExamples({
      rows: [
        {
          conversation: [
            { input: "a", output: "b", output_with_loss: false },
            { input: "c", output: "d", output_with_loss: true },
          ],
        },
        { conversation: [{ input: "", output: "a text" }] },
      ],
    });
    expect(examples[0]).toMatchObject({ messages: [{}, { content: "b", loss: false }, {}, { content: "d" }] });
    expect(examples[1]).toEqual({ kind: "text", text: "a text" });
  });

  it("reads prompt and completion as messages, learning only the completion", () => {
    const row = {
      prompt: [
        { role: "user", content: "a" },
        { role: "assistant", content: "b" },
        { role: "user", content: "c" },
      ],
      completion: [{ role: "assistant", content: "d" }],
    };
    const data = loadDataset({ rows: [row] }, { tokenizer });
    expect(tokenizer.decode(data.at(0).labels_T.filter((label) => label >= 0))).toBe("d<|im_end|>");
  });

  it("takes a format defined by the user", () => {
    const faq = defineFormat({
      name: "faq",
      summary: "q, a",
      columns: { q: "required", a: "required" },
      schema: v.looseObject({ q: v.string(), a: v.string() }),
      toExample: ({ q, a }) => ({ kind: "completion", prompt: q, completion: a }),
    });
    expect(loadExamples({ rows: [{ q: "1", a: "2" }], format: faq }).examples).toEqual([
      { kind: "completion", prompt: "1", completion: "2" },
    ]);
    expect(failure(() => loadExamples({ rows: [{ q: 1 }], format: faq })).message).toBe(
      '[loadDataset] rows[0]: "q": expected string, got 1',
    );
  });
});

describe("finding the format", () => {
  it("lists the candidates when several fit", () => {
    const error = failure(() => loadExamples({ rows: [{ instruction: "a", output: "b", text: "a b" }] }));
    expect(error.data["candidates"]).toEqual(["alpaca", "text"]);
    expect(error.message).toContain("alpaca, text");
  });

  it("names the columns when none fits, and renames them on request", () => {
    const rows = [{ question: "a", answer: "b" }];
    expect(failure(() => loadExamples({ rows })).message).toContain("question, answer");
    const { examples, format } = loadExamples({ rows, columns: { instruction: "question", output: "answer" } });
    expect(format.name).toBe("alpaca");
    expect(examples[0]).toMatchObject({ messages: [{ content: "a" }, { content: "b" }] });
    const bad = failure(() =>
      loadExamples({
        rows: [...rows, { question: "a", answer: 3 }],
        columns: { instruction: "question", output: "answer" },
      }),
    );
    expect(bad.data).toMatchObject({ key: "answer", index: 1 });
    expect(bad.message).toContain('"answer": expected string, got 3');
  });

  it("refuses a column that the format does not read, an unknown format and preference data", () => {
    expect(
      failure(() => loadExamples({ rows: [{ text: "a" }], format: "text", columns: { instruction: "text" } })).code,
    ).toBe("OPTIONS");
    expect(failure(() => loadExamples({ rows: [{ text: "a" }], format: "alpacca" })).message).toContain("sharegpt");
    expect(failure(() => loadExamples({ rows: [{ conversations: [], chosen: {}, rejected: {} }] })).code).toBe(
      "UNSUPPORTED",
    );
  });
});

describe("files", () => {
  const rows = [
    { instruction: "a", output: 'b, "c"\nd' },
    { instruction: "é", output: "🙂" },
  ];
  const jsonl = rows.map((row) => JSON.stringify(row)).join("\r\n");

  it.each([
    ["a.json", JSON.stringify(rows)],
    ["b.json", JSON.stringify({ version: 1, data: rows }, null, 2)],
    ["c.json", jsonl],
    ["d.jsonl", `\uFEFF${jsonl}\n\n`],
    ["e.csv", `\uFEFFinstruction,output\na,"b, ""c""\nd"\né,🙂\n`],
    ["f.jsonl.gz", gzipSync(jsonl)],
    ["g.json.gz", gzipSync(JSON.stringify(rows))],
  ])("reads %s", (name, content) => {
    const { examples } = loadExamples(file(name, content));
    expect(examples).toEqual(loadExamples({ rows }).examples);
  });

  it("reads JSON in csv cells", () => {
    const path = file("cells.csv", 'query,response,history\nc,d,"[[""a"",""b""]]"\ne,f,\n');
    expect(loadExamples(path).examples).toEqual([
      loadExamples({ rows: [{ query: "c", response: "d", history: [["a", "b"]] }] }).examples[0],
      loadExamples({ rows: [{ query: "e", response: "f" }] }).examples[0],
    ]);
  });

  it("reads text files whole or by a separator", () => {
    const path = file("t.txt", "one\n\ntwo\n\n\n\nthree\n");
    expect(loadExamples(path).examples).toEqual([{ kind: "text", text: "one\n\ntwo\n\n\n\nthree\n" }]);
    expect(
      loadExamples({ path, separator: "\n\n" }).examples.map((example) => example.kind === "text" && example.text),
    ).toEqual(["one", "two", "three"]);
  });

  it("names file, line, key and expectation of a bad row", () => {
    const path = file("bad.jsonl", `${JSON.stringify(rows[0])}\n\n{"instruction": "x", "output": null}\n`);
    const error = failure(() => loadDataset(path, { tokenizer }));
    expect(error.message).toBe(`[loadDataset] ${path}:3: "output": expected string, got null`);
    expect(error.data).toMatchObject({ file: path, line: 3, index: 1, key: "output", expected: "string", got: "null" });
    const csv = file("bad.csv", "instruction,output\na,b\nc\nd,e,f\n");
    expect(failure(() => loadExamples(csv)).message).toBe(`[loadDataset] ${csv}:3: "(row)": expected 2 cells, got 1`);
  });

  it("skips bad rows on request and reports each with its reason", () => {
    const path = file(
      "mixed.jsonl",
      `${JSON.stringify(rows[0])}\nnot json\n{"instruction": "x"}\n7\n${JSON.stringify(rows[1])}\n`,
    );
    const report = loadDataset(path, { tokenizer, onBadRow: "skip" }).report();
    expect(report.documents).toBe(2);
    expect(report.sources[0]).toMatchObject({ rows: 5, documents: 2, rejected: 3 });
    expect(report.rejected.map(({ line, key }) => [line, key])).toEqual([
      [2, "(row)"],
      [3, "output"],
      [4, "(row)"],
    ]);
    expect(report.rejected[1]?.reason).toContain("this key");
  });

  it("says what is wrong with a file as a whole", () => {
    expect(failure(() => loadExamples(join(folder, "absent.json"))).code).toBe("IO");
    expect(failure(() => loadExamples(file("x.parquet", "PAR1"))).code).toBe("UNSUPPORTED");
    expect(failure(() => loadExamples(file("x.json", '[\n{"a": 1},\n{"a": }\n]'))).data).toMatchObject({
      line: 3,
      column: 7,
    });
    expect(
      failure(() => loadExamples(file("x.json", '[\n{"a": [1, {}, "\\u00e9", -1e3, null]},\n{"a": 2}\n'))).data,
    ).toMatchObject({ line: 3, column: 9 });
    expect(failure(() => loadExamples(file("y.json", '"text"'))).message).toContain("array of objects");
    expect(failure(() => loadExamples(file("empty.jsonl", "\n"))).message).toContain("at least one row");
    expect(failure(() => loadExamples(file("latin.txt", Uint8Array.of(0xe9, 0x20)))).message).toContain("UTF-8");
    expect(failure(() => loadExamples(file("z.json.gz", "no gzip"))).message).toContain("gzip");
  });

  it("survives arbitrary bytes: every outcome is examples or an LlmError", () => {
    let state = 12345;
    const next = (): number => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) >>> 16;
    const base = Buffer.from(`[${rows.map((row) => JSON.stringify(row)).join(",\n")}]`);
    for (let round = 0; round < 100; round += 1) {
      const bytes = Uint8Array.from(base);
      for (let hit = 0; hit < 3; hit += 1) bytes[next() % bytes.length] = next() & 255;
      for (const name of ["fuzz.json", "fuzz.jsonl", "fuzz.csv", "fuzz.txt"]) {
        try {
          loadExamples(file(name, bytes));
        } catch (error) {
          expect(LlmError.isInstance(error), String(error)).toBe(true);
        }
      }
    }
  });
});
