import type { Results } from "../evaluate.js";

/**
 * Everything: cells with metrics in full precision and every item with prompt, prediction, reference and scores.
 * A value that JSON cannot hold (infinite perplexity) becomes a text.
 */
export function toJson(results: Results): string {
  const cells = results.cells.map((cell) => ({
    ...cell,
    metrics: cell.metrics.map(({ samples: _samples, ...metric }) => ({
      ...metric,
      standardError: metric.standardError ?? null,
    })),
  }));
  const finite = (_key: string, value: unknown): unknown =>
    typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
  return `${JSON.stringify({ version: 1, cells }, finite, 2)}\n`;
}
