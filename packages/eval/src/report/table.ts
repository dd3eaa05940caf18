import type { Cell, Results } from "../evaluate.js";
import type { Metric } from "../task.js";

/** Columns that a text takes in a terminal: two for wide East Asian characters and emoji, none for combining marks. */
export function displayWidth(text: string): number {
  let width = 0;
  for (const character of text) {
    if (/\p{Mark}|\u200d|\ufe0f/u.test(character)) continue;
    width +=
      /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|[\u{1f300}-\u{1faff}]|[\u{20000}-\u{3fffd}]/u.test(
        character,
      )
        ? 2
        : 1;
  }
  return width;
}

/** A number with four significant decimals for fractions, fewer for large numbers. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e6 ? value.toExponential(3) : value.toFixed(size >= 1000 ? 1 : size >= 10 ? 2 : 4);
}

/** "0.6667 ± 0.3333"; without the second part where there is no standard error. */
export function formatMetric(metric: Pick<Metric, "value" | "standardError">): string {
  const value = formatNumber(metric.value);
  if (metric.standardError === undefined) return value;
  const decimals = /\.(\d+)$/.exec(value)?.[1]?.length;
  return `${value} ± ${decimals === undefined ? formatNumber(metric.standardError) : metric.standardError.toFixed(decimals)}`;
}

/** The first metric of a cell, or why there is none. */
export function cellText(cell: Cell | undefined): string {
  if (!cell) return "not run";
  if (cell.error) return `failed (${cell.error.code})`;
  return cell.metrics[0] ? formatMetric(cell.metrics[0]) : "no reference";
}

/** Task names in order of appearance, with the first metric's name and mode as heading. */
export function columnHeadings(results: Results): { task: string; heading: string }[] {
  const tasks = [...new Set(results.cells.map((cell) => cell.task))];
  return tasks.map((task) => {
    const cell = results.cells.find((candidate) => candidate.task === task && candidate.metrics.length > 0);
    const metric = cell?.metrics[0]?.name;
    return { task, heading: metric === undefined || metric === task ? task : `${task} ${metric}` };
  });
}

function align(rows: readonly (readonly string[])[], rightFrom: number): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => displayWidth(row[column]!))));
  return rows.map((row) =>
    row
      .map((text, column) => {
        const space = " ".repeat(widths[column]! - displayWidth(text));
        return column < rightFrom ? text + space : space + text;
      })
      .join("  ")
      .trimEnd(),
  );
}

/**
 * The results as aligned text.
 * "matrix": a line per model, a column per task with its first metric ± standard error. "list": a line per metric.
 * Reasons of failed cells follow below.
 */
export function formatTable(results: Results, layout: "matrix" | "list" = "matrix"): string {
  const models = [...new Set(results.cells.map((cell) => cell.model))];
  let rows: string[][];
  if (layout === "matrix") {
    const columns = columnHeadings(results);
    rows = [
      ["model", ...columns.map((column) => column.heading)],
      ...models.map((model) => [
        model,
        ...columns.map(({ task }) =>
          cellText(results.cells.find((cell) => cell.model === model && cell.task === task)),
        ),
      ]),
    ];
  } else {
    rows = [["model", "task", "mode", "metric", "value", "n"]];
    for (const cell of results.cells) {
      const head = [cell.model, cell.task, cell.mode];
      if (cell.metrics.length === 0) rows.push([...head, "-", cellText(cell), String(cell.items.length)]);
      for (const metric of cell.metrics) rows.push([...head, metric.name, formatMetric(metric), String(metric.n)]);
    }
  }
  const lines = align(rows, layout === "matrix" ? 1 : 4);
  const widest = Math.max(...lines.map(displayWidth));
  lines.splice(1, 0, "─".repeat(widest));
  const failures = results.cells.filter((cell) => cell.error);
  if (failures.length > 0)
    lines.push("", ...failures.map((cell) => `${cell.model} × ${cell.task}: ${cell.error!.message}`));
  return `${lines.join("\n")}\n`;
}
