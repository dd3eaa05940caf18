import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UnsupportedError } from "@llm/core";
import { parse } from "csv-parse/sync";
import { describe, expect, it } from "vitest";
import { evaluate, type Results } from "../evaluate.js";
import { FakeModel } from "../fake-model.test-support.js";
import { multipleChoice } from "../tasks/multiple-choice.js";
import { perplexity } from "../tasks/perplexity.js";
import { toCsv } from "./csv.js";
import { toHtml } from "./html.js";
import { displayWidth, formatMetric, formatTable } from "./table.js";
import { writeReport } from "./write-report.js";

const rows = Array.from({ length: 4 }, (_, i) => ({
  question: `<b>${i}</b> & "more"`,
  A: "x",
  B: "y",
  answer: i < 3 ? "A" : "B",
}));

const results = (): Promise<Results> =>
  evaluate({
    models: {
      base: new FakeModel({ logprob: () => -1 }),
      微调模型: new FakeModel({
        answer: () => "<script>alert(1)</script> A",
        logprob: () => {
          throw new UnsupportedError("[fake] no, never");
        },
      }),
    },
    tasks: [multipleChoice(rows, { name: "选择题" }), perplexity({ text: "hello world", name: "ppl", blockTokens: 3 })],
  });

describe("reports", () => {
  it("aligns columns by what a terminal shows", async () => {
    expect(displayWidth("微调a")).toBe(5);
    expect(displayWidth("é")).toBe(1);
    const lines = formatTable(await results()).split("\n");
    expect(lines[0]).toBe("model     选择题 accuracy        ppl perplexity");
    expect(lines[2]).toBe("base      0.7500 ± 0.2500       2.7183 ± 0.0000");
    expect(lines[3]).toBe("微调模型  0.7500 ± 0.2500  failed (UNSUPPORTED)");
    expect(lines.slice(0, 4).map(displayWidth)).toEqual([47, 47, 47, 47]);
    expect(lines.slice(5)).toEqual(["微调模型 × ppl: [fake] no, never", ""]);
    const list = formatTable(await results(), "list");
    expect(list).toContain("bits_per_byte");
  });

  it("shows the error with the value's decimals", () => {
    expect(formatMetric({ value: 123.456, standardError: 1.2345 })).toBe("123.46 ± 1.23");
    expect(formatMetric({ value: 0.5, standardError: undefined })).toBe("0.5000");
    expect(formatMetric({ value: Number.POSITIVE_INFINITY, standardError: undefined })).toBe("Infinity");
  });

  it("writes csv that a csv reader reads back", async () => {
    const parsed = parse(toCsv(await results()), { columns: true }) as Record<string, string>[];
    expect(parsed[0]).toMatchObject({
      model: "base",
      task: "选择题",
      metric: "accuracy",
      value: "0.75",
      standard_error: "0.25",
      n: "4",
      error: "",
    });
    expect(parsed.at(-1)).toMatchObject({ model: "微调模型", task: "ppl", metric: "", error: "[fake] no, never" });
  });

  it("escapes everything in the page and takes nothing from elsewhere", async () => {
    const html = toHtml(await results(), "A & B");
    expect(html).toContain("<title>A &amp; B</title>");
    expect(html).not.toContain("<script>");
    expect(html).toContain("&lt;script&gt;alert(1)");
    expect(html).toContain("0.7500 ± 0.2500");
    expect(html).not.toMatch(/(?:src|href)=|url\(|@import|https?:/);
    expect(html.match(/<details>/g)!.length).toBeGreaterThan(8);
    for (const tag of ["details", "section", "table", "tr", "td", "div", "pre"])
      expect(html.match(new RegExp(`<${tag}[ >]`, "g"))!.length).toBe(html.match(new RegExp(`</${tag}>`, "g"))!.length);
  });

  it("writes the files asked for and leaves no temporary ones", async () => {
    const folder = await mkdtemp(join(tmpdir(), "llm-eval-"));
    try {
      const all = await results();
      const paths = await writeReport(all, join(folder, "out"));
      expect(await readdir(join(folder, "out"))).toEqual(["report.csv", "report.html", "report.json", "report.txt"]);
      const json = JSON.parse(await readFile(paths[2]!, "utf8")) as { cells: { items: { prompt: string }[] }[] };
      expect(json.cells[0]!.items[0]!.prompt).toContain('<b>0</b> & "more"');
      expect(await writeReport(all, join(folder, "one"), { formats: ["csv"], name: "scores" })).toEqual([
        join(folder, "one", "scores.csv"),
      ]);
      await expect(writeReport(all, folder, { formats: ["pdf"] } as never)).rejects.toThrow("formats");
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
