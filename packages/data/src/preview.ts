import type { Dataset, TokenDocument } from "./dataset.js";

export interface PreviewOptions {
  /** Green for learned text, dim for the rest, by ANSI codes; else learned text stands between ⟦ and ⟧. @default false */
  color?: boolean;
  /** Most tokens to show of a document. @default 512 */
  maxTokens?: number;
}

/**
 * Shows what the model will learn: documents of the first `count` samples as text, with learned tokens marked and counted.
 * A run whose weight is not 1 is followed by ×weight.
 */
export function preview(dataset: Dataset, count = 3, options: PreviewOptions = {}): string {
  const lines: string[] = [];
  for (let sample = 0; sample < Math.min(count, dataset.length); sample += 1) {
    const indices = dataset.sampleDocuments(sample);
    const documents = Array.from(indices, (index) => dataset.documents[index] as TokenDocument);
    const tokens = documents.reduce((sum, document) => sum + document.ids.length, 0);
    lines.push(
      `── sample ${sample}: ${documents.length} document${documents.length === 1 ? "" : "s"}, ${tokens} tokens`,
    );
    for (const [at, document] of documents.entries()) {
      const learned = document.lossWeights.reduce((sum, weight, t) => sum + Number(t > 0 && weight > 0), 0);
      lines.push(
        `   document ${indices[at]} (source ${document.source}, row ${document.row}): ${document.ids.length} tokens, ${learned} learned`,
      );
      lines.push(showDocument(dataset, document, options));
    }
  }
  return lines.join("\n");
}

function showDocument(
  dataset: Dataset,
  document: TokenDocument,
  { color = false, maxTokens = 512 }: PreviewOptions,
): string {
  const { ids, lossWeights } = document;
  const end = Math.min(ids.length, maxTokens);
  const weightAt = (index: number): number => (index === 0 ? 0 : (lossWeights[index] as number));
  let shown = "";
  for (let start = 0; start < end;) {
    const weight = weightAt(start);
    let stop = start + 1;
    while (stop < end && weightAt(stop) === weight) stop += 1;
    const text = dataset.tokenizer.decode(ids.subarray(start, stop));
    const suffix = weight > 0 && weight !== 1 ? `×${Number(weight.toPrecision(6))}` : "";
    if (color) shown += `\u001b[${weight > 0 ? "32" : "2"}m${text}${suffix}\u001b[0m`;
    else shown += weight > 0 ? `⟦${text}⟧${suffix}` : text;
    start = stop;
  }
  return end < ids.length ? `${shown} … ${ids.length - end} more tokens` : shown;
}
