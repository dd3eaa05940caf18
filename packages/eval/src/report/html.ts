import type { Cell, ItemRecord, Results } from "../evaluate.js";
import type { Metric } from "../task.js";
import { columnHeadings, formatMetric } from "./table.js";

const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text: string): string => text.replace(/[&<>"']/g, (character) => ENTITIES[character]!);

const STYLE = `
:root{color-scheme:light dark;--line:#8883;--soft:#8881;--good:#1a7f37;--bad:#c0392b;--bar:#3b82f6}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 1rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.4rem .7rem;border-bottom:1px solid var(--line);vertical-align:top;font-variant-numeric:tabular-nums}
thead th{border-bottom:2px solid var(--line)}td.failed,.wrong{color:var(--bad)}.right{color:var(--good)}
.bar{position:relative;height:6px;margin-top:.3rem;background:var(--soft);border-radius:3px;min-width:90px}
.bar i{position:absolute;left:0;top:0;bottom:0;background:var(--bar);border-radius:3px}
.bar b{position:absolute;top:-2px;bottom:-2px;border-left:2px solid;border-right:2px solid;opacity:.55}
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);padding:.5rem .7rem;border-radius:4px;margin:.3rem 0;font-size:13px}
small{opacity:.7}
`;

/** A fraction as a bar with the range of ± one standard error marked on it. */
function bar(metric: Metric): string {
  if (metric.unit !== "fraction") return "";
  const percent = (value: number): string => (Math.min(1, Math.max(0, value)) * 100).toFixed(2);
  const error = metric.standardError ?? 0;
  const low = Math.max(0, metric.value - error);
  const width = Math.min(1, metric.value + error) - low;
  const range = error > 0 ? `<b style="left:${percent(low)}%;width:${percent(width)}%"></b>` : "";
  return `<div class="bar"><i style="width:${percent(metric.value)}%"></i>${range}</div>`;
}

function overview(results: Results): string {
  const columns = columnHeadings(results);
  const models = [...new Set(results.cells.map((cell) => cell.model))];
  const cellHtml = (cell: Cell | undefined): string => {
    if (!cell) return "<td>not run</td>";
    if (cell.error) return `<td class="failed">${escape(cell.error.message)}</td>`;
    const metric = cell.metrics[0];
    return metric ? `<td>${escape(formatMetric(metric))}${bar(metric)}</td>` : "<td>no reference</td>";
  };
  const head = columns.map(({ heading }) => `<th scope="col">${escape(heading)}</th>`).join("");
  const body = models
    .map((model) => {
      const row = columns.map(({ task }) =>
        cellHtml(results.cells.find((cell) => cell.model === model && cell.task === task)),
      );
      return `<tr><th scope="row">${escape(model)}</th>${row.join("")}</tr>`;
    })
    .join("\n");
  return `<div class="scroll"><table><thead><tr><th scope="col">model</th>${head}</tr></thead><tbody>\n${body}\n</tbody></table></div>`;
}

function itemHtml(item: ItemRecord): string {
  const mark =
    item.correct === undefined ? "" : item.correct ? '<span class="right">✓</span> ' : '<span class="wrong">✗</span> ';
  const short = item.prediction.split("\n", 1)[0]!.slice(0, 80);
  const reference = item.reference === undefined ? "" : `<small>reference</small><pre>${escape(item.reference)}</pre>`;
  return (
    `<details><summary>${mark}${escape(item.id)}: ${escape(short)}</summary>` +
    `<small>prompt</small><pre>${escape(item.prompt)}</pre><small>prediction</small><pre>${escape(item.prediction)}</pre>${reference}</details>`
  );
}

function cellSection(cell: Cell): string {
  const rows = cell.metrics
    .map(
      (metric) =>
        `<tr><th scope="row">${escape(metric.name)}</th><td>${escape(formatMetric(metric))}</td><td>${metric.n}</td></tr>`,
    )
    .join("");
  const metrics =
    rows &&
    `<table><thead><tr><th>metric</th><th>value ± standard error</th><th>n</th></tr></thead><tbody>${rows}</tbody></table>`;
  const failure = cell.error ? `<p class="wrong">${escape(cell.error.message)}</p>` : "";
  const items =
    cell.items.length > 0
      ? `<details><summary>${cell.items.length} answers</summary>\n${cell.items.map(itemHtml).join("\n")}\n</details>`
      : "";
  const facts = `${cell.mode} · ${cell.items.length} of ${cell.available} items · ${(cell.durationMs / 1000).toFixed(1)} s · ${cell.hash.slice(0, 12)}`;
  return `<section><h2>${escape(cell.model)} × ${escape(cell.task)}</h2><small>${escape(facts)}</small>${failure}${metrics}${items}</section>`;
}

/** One self-contained page: no script, no font, nothing from elsewhere; every text of models and data is escaped. */
export function toHtml(results: Results, title = "Evaluation"): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${escape(title)}</title><style>${STYLE}</style></head><body>
<h1>${escape(title)}</h1>
${overview(results)}
${results.cells.map(cellSection).join("\n")}
</body></html>
`;
}
