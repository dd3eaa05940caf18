import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { packIds, tinyModel } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { lossCurveSvg, type StepReport, train } from "./index.js";
import { movingAverage } from "./loss-curve.js";
import { progressLine } from "./progress.js";

/** Tags of a document, checked to be balanced and its attributes to be quoted. @throws at the first fault */
function xmlTags(text: string): string[] {
  const open: string[] = [];
  const names: string[] = [];
  const rest = text.replace(
    /<(\/?)([a-zA-Z]+)((?:\s+[a-zA-Z][\w:-]*="[^"<&]*")*)\s*(\/?)>/g,
    (_, close: string, name: string, __, single: string) => {
      names.push(name);
      if (close) {
        if (open.pop() !== name) throw new Error(`</${name}> closes nothing`);
      } else if (!single) open.push(name);
      return "";
    },
  );
  if (open.length > 0) throw new Error(`<${open.join("> <")}> left open`);
  if (/[<>]|&(?!amp;|lt;|gt;)/.test(rest)) throw new Error(`stray markup: ${rest}`);
  return names;
}

describe("the loss curve", () => {
  it("is well-formed SVG with a line, an average, the learning rate and evaluations", () => {
    const points = Array.from({ length: 3000 }, (_, i) => ({
      step: i + 1,
      loss: 3 * Math.exp(-i / 800) + Math.sin(i) / 10,
      lr: 1e-3 * (1 - i / 3000),
      ...(i % 500 === 499 ? { evaluation: { loss: 1 } } : {}),
    }));
    const svg = lossCurveSvg(points);
    const tags = xmlTags(svg);
    expect(tags[0]).toBe("svg");
    expect(tags.filter((t) => t === "polyline")).toHaveLength(3);
    expect(tags.filter((t) => t === "circle")).toHaveLength(6);
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    expect(svg.length).toBeLessThan(100_000);
    for (const [, x, y] of svg.matchAll(/([\d.-]+),([\d.-]+)/g)) {
      expect(Number(x)).toBeGreaterThanOrEqual(0);
      expect(Number(x)).toBeLessThanOrEqual(800);
      expect(Number(y)).toBeGreaterThanOrEqual(0);
      expect(Number(y)).toBeLessThanOrEqual(400);
    }
  });

  it.each([
    ["no point", []],
    ["one point", [{ step: 1, loss: 2, lr: 0.1 }]],
    [
      "equal losses",
      [
        { step: 1, loss: 2, lr: 0 },
        { step: 2, loss: 2, lr: 0 },
      ],
    ],
    [
      "losses that are not numbers",
      [
        { step: 1, loss: Number.NaN, lr: 0.1 },
        { step: 2, loss: Number.NaN, lr: 0.1 },
      ],
    ],
  ])("is well-formed with %s", (_, points) => {
    const svg = lossCurveSvg(points);
    xmlTags(svg);
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  });

  it("averages without the bias of the start, leaving holes out", () => {
    expect(movingAverage([4, Number.NaN, 4, 4], 0.9)).toEqual([4, 4, 4, 4].map((v) => expect.closeTo(v, 12)));
    expect(movingAverage([0, 1], 0.5)[1]).toBeCloseTo(2 / 3, 12);
  });

  it("is written as a picture and as JSON lines, and goes on when the run is resumed", async () => {
    const folder = await mkdtemp(`${tmpdir()}/train-curve-`);
    const curve = { svg: join(folder, "curve.svg"), jsonl: join(folder, "curve.jsonl") };
    const model = tinyModel({ layers: 1 });
    const data = [packIds([model.tokenizer.encode("one two three four")])];
    const checkpoint = { folder: join(folder, "checkpoints"), every: 3, keep: 9 };
    await train({ model, data, steps: 8, curve, checkpoint }).done;
    await train({
      model,
      data,
      steps: 8,
      curve,
      checkpoint: { ...checkpoint, resume: join(folder, "checkpoints", "step-6") },
    }).done;
    const lines = (await readFile(curve.jsonl, "utf8"))
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as StepReport);
    expect(lines.map((r) => r.step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(lines.every((r) => typeof r.loss === "number" && r.totalSteps === 8)).toBe(true);
    expect(xmlTags(await readFile(curve.svg, "utf8"))[0]).toBe("svg");
    expect((await readdir(folder)).sort()).toEqual(["checkpoints", "curve.jsonl", "curve.svg"]);
    model.dispose();
    await rm(folder, { recursive: true });
  });
});

describe("the progress line", () => {
  it("shows how far the run is", () => {
    const report = {
      step: 25,
      totalSteps: 100,
      loss: 1.23456,
      lr: 1e-4,
      tokensPerSecond: 1234.5,
      etaMs: 3_725_000,
    } as StepReport;
    expect(progressLine(report, 8)).toBe("██░░░░░░ 25/100  loss 1.2346  lr 1.00e-4  1235 tok/s  01:02:05 left");
  });
});
