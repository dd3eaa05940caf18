import { OptionsError } from "@llm/core";
import type { Cell, Results } from "./evaluate.js";
import { twoSidedPValue, weightedMeanEstimate } from "./statistics.js";
import type { Metric } from "./task.js";

/** Model a minus model b on the same items. */
export interface Comparison {
  task: string;
  metric: string;
  a: number;
  b: number;
  /** a − b. */
  difference: number;
  /** Of the difference, from the items' own differences; undefined for a single observation. */
  standardError: number | undefined;
  /** difference / standardError. */
  z: number | undefined;
  /** Two-sided, normal approximation. */
  p: number | undefined;
  /** Paired observations, and those where a is above, below b. */
  n: number;
  above: number;
  below: number;
}

/**
 * Paired comparison of two models: d̄ = Σ wᵢ(aᵢ − bᵢ)/Σ wᵢ over the items that both answered, with the standard error of
 * the differences themselves. It is far tighter than √(SEa² + SEb²), since both models met the same easy and hard items.
 * Items are paired by id, so the prompt's style may differ; perplexity is paired only between equal tokenizations (row
 * `nll_per_token`). Tasks where one of the two failed give no row.
 * @throws {OptionsError} a name that is not in the results, or nothing to compare
 * @see Miller, Adding Error Bars to Evals (2024), section 4
 */
export function compare(results: Results, a: string, b: string): Comparison[] {
  const names = new Set(results.cells.map((cell) => cell.model));
  for (const name of [a, b])
    if (!names.has(name))
      throw new OptionsError(`[compare] expected one of ${[...names].join(", ")}, got "${name}"`, { name });
  const rows: Comparison[] = [];
  const skipped: string[] = [];
  for (const left of results.cells.filter((cell) => cell.model === a)) {
    const right = results.cells.find((cell) => cell.model === b && cell.task === left.task);
    if (!right) continue;
    const before = rows.length;
    for (const metric of left.metrics) {
      const other = right.metrics.find((candidate) => candidate.name === metric.name);
      const row = other && pair(left, metric, other);
      if (row) rows.push(row);
    }
    if (rows.length === before) skipped.push(left.task);
  }
  if (rows.length === 0)
    throw new OptionsError(
      `[compare] ${a} and ${b} have no task with the same items (${skipped.join(", ") || "none in common"})`,
    );
  return rows;
}

function pair(cell: Cell, left: Metric, right: Metric): Comparison | undefined {
  if (!left.samples || !right.samples) return undefined;
  const others = new Map(right.samples.map((sample) => [sample.id, sample]));
  const values: { a: number; b: number; weight: number }[] = [];
  for (const sample of left.samples) {
    const other = others.get(sample.id);
    if (!other) continue;
    if (other.weight !== sample.weight) return undefined;
    values.push({ a: sample.value, b: other.value, weight: sample.weight });
  }
  const weights = values.map((value) => value.weight);
  const estimate = weightedMeanEstimate(
    values.map((value) => value.a - value.b),
    weights,
  );
  if (!estimate) return undefined;
  const { value: difference, standardError, n } = estimate;
  const z = standardError === undefined || standardError === 0 ? undefined : difference / standardError;
  const mean = (key: "a" | "b"): number =>
    weightedMeanEstimate(
      values.map((value) => value[key]),
      weights,
    )!.value;
  return {
    task: cell.task,
    metric: left.name,
    a: mean("a"),
    b: mean("b"),
    difference,
    standardError,
    z,
    p: z === undefined ? undefined : twoSidedPValue(z),
    n,
    above: values.filter((value) => value.a > value.b).length,
    below: values.filter((value) => value.a < value.b).length,
  };
}
