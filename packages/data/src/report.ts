import type { TokenizeCounts } from "./tokenize-example.js";

/** A row that was left out because it breaks its format. */
export interface RejectedRow {
  file: string;
  index: number;
  line?: number;
  /** Path within the row. */
  key?: string;
  reason: string;
}

/** What one source gave. */
export interface SourceReport {
  name: string;
  format: string;
  rows: number;
  /** Documents before mixing. */
  documents: number;
  tokens: number;
  rejected: number;
}

/** Counts of loading; the part of a report that does not change when a data set is split. */
export interface LoadCounts extends TokenizeCounts {
  /** Documents cut to maxTokens, and the tokens that this lost. */
  truncated: { documents: number; tokens: number };
  /** Documents left out by `overlong: "drop"`. */
  dropped: { documents: number; tokens: number };
  /** Documents cut into windows by `overlong: "split"`, and the windows. */
  windowed: { documents: number; windows: number };
  /** Documents left out because truncation cut off everything to learn. */
  nothingLeft: number;
  rejected: RejectedRow[];
  sources: SourceReport[];
}

/** How long documents are, in tokens. */
export interface LengthReport {
  min: number;
  mean: number;
  median: number;
  p90: number;
  p99: number;
  max: number;
  /** Documents with at most `upTo` tokens (and more than the entry before). Edges are powers of two. */
  histogram: { upTo: number; documents: number }[];
}

/** What a data set holds and what became of its rows. Token counts are after mixing and truncation. */
export interface DatasetReport extends LoadCounts {
  samples: number;
  documents: number;
  tokens: number;
  /** Labels that are not −100. */
  trainedTokens: number;
  /** trainedTokens ÷ tokens, in [0, 1]. */
  trainedFraction: number;
  /** tokens ÷ (samples · maxTokens): how full packed samples are, in (0, 1]. */
  fill: number;
  /** Tokens per document. */
  lengths: LengthReport;
}

export function emptyCounts(): LoadCounts {
  return {
    splitConversations: 0,
    extraDocuments: 0,
    mergedBoundaries: 0,
    appendedEos: 0,
    truncated: { documents: 0, tokens: 0 },
    dropped: { documents: 0, tokens: 0 },
    windowed: { documents: 0, windows: 0 },
    nothingLeft: 0,
    rejected: [],
    sources: [],
  };
}

export function lengthReport(lengths: readonly number[]): LengthReport {
  const sorted = Float64Array.from(lengths).sort();
  const quantile = (q: number): number => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? 0;
  const histogram: LengthReport["histogram"] = [];
  for (let upTo = 2 ** Math.ceil(Math.log2(Math.max(1, sorted[0] ?? 1))), at = 0; at < sorted.length; upTo *= 2) {
    let documents = 0;
    while (at < sorted.length && (sorted[at] as number) <= upTo) {
      at += 1;
      documents += 1;
    }
    histogram.push({ upTo, documents });
  }
  return {
    min: sorted[0] ?? 0,
    mean: sorted.length === 0 ? 0 : sorted.reduce((sum, length) => sum + length, 0) / sorted.length,
    median: quantile(0.5),
    p90: quantile(0.9),
    p99: quantile(0.99),
    max: sorted.at(-1) ?? 0,
    histogram,
  };
}
