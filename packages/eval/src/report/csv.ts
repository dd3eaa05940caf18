import type { Results } from "../evaluate.js";

const quote = (value: string): string => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

/** A line per model, task and metric, in full precision; lines of failed cells carry the reason. RFC 4180. */
export function toCsv(results: Results): string {
  const lines = [["model", "task", "mode", "metric", "value", "standard_error", "n", "hash", "error"]];
  for (const cell of results.cells) {
    const head = [cell.model, cell.task, cell.mode];
    if (cell.metrics.length === 0)
      lines.push([...head, "", "", "", String(cell.items.length), cell.hash, cell.error?.message ?? ""]);
    for (const metric of cell.metrics)
      lines.push([
        ...head,
        metric.name,
        String(metric.value),
        String(metric.standardError ?? ""),
        String(metric.n),
        cell.hash,
        "",
      ]);
  }
  return `${lines.map((line) => line.map(quote).join(",")).join("\r\n")}\r\n`;
}
