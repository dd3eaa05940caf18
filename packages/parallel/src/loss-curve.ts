/** The loss curve as JSON lines and as an SVG picture. */
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { FormatError } from "@llm/core";
import type * as v from "valibot";
import type { TrainCurveOptions } from "./options.js";
import type { StepReport } from "./report.js";

/** A point of the curve. */
export interface CurvePoint {
  step: number;
  loss: number;
  lr: number;
  evaluation?: { loss: number };
}

async function replaceFile(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const draft = `${path}.tmp-${process.pid}`;
  await writeFile(draft, text);
  await rename(draft, path);
}

/** Collects reports; writes the files every few seconds and at the end. */
export class LossCurve {
  readonly #options: v.InferOutput<typeof TrainCurveOptions>;
  readonly #points: CurvePoint[];
  readonly #lines: string[];
  #writing: Promise<void> = Promise.resolve();
  #failure: unknown;
  #writtenAt = performance.now();

  private constructor(options: v.InferOutput<typeof TrainCurveOptions>, lines: string[]) {
    this.#options = options;
    this.#lines = lines;
    this.#points = lines.map((line) => JSON.parse(line) as CurvePoint);
  }

  /** @param step  steps done before: their lines of an existing JSON-lines file stay, later ones go */
  static async open(options: v.InferOutput<typeof TrainCurveOptions>, step: number): Promise<LossCurve> {
    const { jsonl } = options;
    if (step === 0 || jsonl === undefined || !existsSync(jsonl)) return new LossCurve(options, []);
    const lines = (await readFile(jsonl, "utf8")).split("\n").filter((line) => line.trim() !== "");
    const kept = lines.filter((line, i) => {
      try {
        return (JSON.parse(line) as CurvePoint).step <= step;
      } catch (error) {
        throw new FormatError(
          `[train] ${jsonl}:${i + 1}: expected a JSON object, got ${line.slice(0, 40)}`,
          { file: jsonl, line: i + 1 },
          error,
        );
      }
    });
    return new LossCurve(options, kept);
  }

  add(report: StepReport): void {
    this.#points.push({
      step: report.step,
      loss: report.loss,
      lr: report.lr,
      ...(report.evaluation ? { evaluation: report.evaluation } : {}),
    });
    this.#lines.push(JSON.stringify(report));
    if (performance.now() - this.#writtenAt > 5000) this.#write();
  }

  #write(): void {
    this.#writtenAt = performance.now();
    const { svg, jsonl } = this.#options;
    this.#writing = this.#writing
      .then(async () => {
        if (jsonl !== undefined) await replaceFile(jsonl, this.#lines.map((line) => `${line}\n`).join(""));
        if (svg !== undefined) await replaceFile(svg, lossCurveSvg(this.#points));
      })
      .catch((error: unknown) => {
        this.#failure = error;
      });
  }

  /** @throws the first file that could not be written */
  async close(): Promise<void> {
    this.#write();
    await this.#writing;
    if (this.#failure !== undefined) throw this.#failure;
  }
}

/** Exponential moving average with the start's bias removed; NaN points are left out. */
export function movingAverage(values: readonly number[], decay: number): number[] {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (Number.isFinite(value)) {
      mean = decay * mean + (1 - decay) * value;
      weight = decay * weight + (1 - decay);
    }
    return weight === 0 ? Number.NaN : mean / weight;
  });
}

/** Round numbers that divide [low, high] into about `count` parts. */
function ticks(low: number, high: number, count: number): number[] {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) ?? raw;
  const list: number[] = [];
  for (let i = Math.ceil(low / size); i * size <= high + size * 1e-9; i++) list.push(i * size);
  return list;
}

const label = (value: number): string => String(Number(value.toPrecision(4)));

/**
 * A picture of the curve: loss (thin), its moving average, evaluation losses (dots), learning rate (dashed, own scale).
 * @returns an SVG document without scripts or outside references
 */
export function lossCurveSvg(
  points: readonly CurvePoint[],
  size: { width: number; height: number } = { width: 800, height: 400 },
): string {
  const { width, height } = size;
  const box = { left: 56, right: width - 16, top: 28, bottom: height - 36 };
  const finite = points.filter((p) => Number.isFinite(p.loss));
  const losses = [...finite.map((p) => p.loss), ...points.flatMap((p) => (p.evaluation ? [p.evaluation.loss] : []))];
  const lowest = losses.length > 0 ? losses.reduce((a, b) => Math.min(a, b)) : 0;
  const highest = losses.length > 0 ? losses.reduce((a, b) => Math.max(a, b)) : 1;
  const margin = (highest - lowest) * 0.05 || Math.abs(highest) * 0.05 || 1;
  const [low, high] = [lowest - margin, highest + margin];
  const firstStep = points[0]?.step ?? 0;
  const lastStep = Math.max(points.at(-1)?.step ?? 1, firstStep + 1);
  const x = (step: number): string =>
    (box.left + ((step - firstStep) / (lastStep - firstStep)) * (box.right - box.left)).toFixed(1);
  const y = (loss: number): string => (box.bottom - ((loss - low) / (high - low)) * (box.bottom - box.top)).toFixed(1);
  const topLr = points.reduce((most, p) => Math.max(most, p.lr), 0) || 1;
  const yLr = (lr: number): string => (box.bottom - (lr / topLr) * (box.bottom - box.top) * 0.9).toFixed(1);
  // A line of more points than pixels is thinned to its average in each pixel.
  const thin = <T extends { step: number }>(
    list: readonly T[],
    value: (p: T) => number,
  ): { step: number; value: number }[] => {
    const bucket = Math.max(1, Math.ceil(list.length / (box.right - box.left)));
    const out: { step: number; value: number }[] = [];
    for (let at = 0; at < list.length; at += bucket) {
      const part = list.slice(at, at + bucket);
      out.push({ step: part[part.length >> 1]!.step, value: part.reduce((sum, p) => sum + value(p), 0) / part.length });
    }
    return out;
  };
  const line = (list: { step: number; value: number }[], toY: (value: number) => string, style: string): string =>
    list.length === 0
      ? ""
      : `<polyline fill="none" ${style} points="${list.map((p) => `${x(p.step)},${toY(p.value)}`).join(" ")}"/>`;
  const decay = 1 - Math.min(1, 40 / Math.max(finite.length, 1)) * 0.5;
  const smooth = movingAverage(
    finite.map((p) => p.loss),
    finite.length > 20 ? decay : 0,
  );
  const averaged = finite.map((p, i) => ({ step: p.step, value: smooth[i]! }));
  const grid = [
    ...ticks(low, high, 5).map(
      (t) =>
        `<line x1="${box.left}" x2="${box.right}" y1="${y(t)}" y2="${y(t)}" stroke="#e5e5e5"/><text x="${box.left - 6}" y="${y(t)}" dy="4" text-anchor="end">${label(t)}</text>`,
    ),
    ...ticks(firstStep, lastStep, 8)
      .filter((t) => Number.isInteger(t))
      .map((t) => `<text x="${x(t)}" y="${box.bottom + 16}" text-anchor="middle">${label(t)}</text>`),
  ];
  const dots = points
    .filter((p) => p.evaluation)
    .map((p) => `<circle cx="${x(p.step)}" cy="${y(p.evaluation!.loss)}" r="3.5" fill="#d62728"/>`);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11" fill="#444">`,
    `<title>Training loss</title>`,
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...grid,
    `<line x1="${box.left}" x2="${box.right}" y1="${box.bottom}" y2="${box.bottom}" stroke="#888"/>`,
    line(
      thin(points, (p) => p.lr),
      yLr,
      'stroke="#2ca02c" stroke-dasharray="4 4" stroke-opacity="0.6"',
    ),
    line(
      thin(finite, (p) => p.loss),
      y,
      'stroke="#1f77b4" stroke-opacity="0.35"',
    ),
    line(
      thin(averaged, (p) => p.value),
      y,
      'stroke="#1f77b4" stroke-width="2"',
    ),
    ...dots,
    `<text x="${box.left}" y="16"><tspan fill="#1f77b4">loss</tspan>${dots.length > 0 ? ' <tspan dx="12" fill="#d62728">evaluation</tspan>' : ""} <tspan dx="12" fill="#2ca02c">learning rate (peak ${label(topLr)})</tspan></text>`,
    `<text x="${(box.left + box.right) / 2}" y="${height - 6}" text-anchor="middle">step</text>`,
    "</svg>",
    "",
  ]
    .filter((part) => part !== "")
    .join("\n")
    .concat("\n");
}
