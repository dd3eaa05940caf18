import type { TokenBatch } from "@llm/models";
import type { TokenDocument } from "./dataset.js";

/** A batch and where it comes from. */
export interface DataBatch extends TokenBatch {
  /** Step over all epochs, from 0; the next run's `startStep` is this + 1. */
  step: number;
  epoch: number;
  /** Indices into `dataset.documents`, in the batch's order; document b is tokens [cuSeqlens[b], cuSeqlens[b+1]). */
  documents_B: Int32Array;
}

/** Label of a position where nothing is learned. */
export const IGNORED_LABEL = -100;

/**
 * Lays documents one after the other on one token axis, T = Σ lengths.
 * labels_T[t] = ids_T[t+1] where that token belongs to the same document and is learned, else −100. Weights are given only when
 * one of them is not 1.
 */
export function packDocuments(documents: readonly TokenDocument[]): TokenBatch {
  const total = documents.reduce((sum, document) => sum + document.ids.length, 0);
  const ids_T = new Int32Array(total);
  const labels_T = new Int32Array(total).fill(IGNORED_LABEL);
  const weights_T = new Float32Array(total);
  const positions_T = new Int32Array(total);
  const cuSeqlens_B1 = new Int32Array(documents.length + 1);
  let weighted = false;
  let offset = 0;
  for (const [b, { ids, lossWeights }] of documents.entries()) {
    ids_T.set(ids, offset);
    for (let t = 0; t < ids.length; t += 1) {
      positions_T[offset + t] = t;
      const weight = t + 1 < ids.length ? (lossWeights[t + 1] as number) : 0;
      if (weight <= 0) continue;
      labels_T[offset + t] = ids[t + 1] as number;
      weights_T[offset + t] = weight;
      weighted ||= weight !== 1;
    }
    offset += ids.length;
    cuSeqlens_B1[b + 1] = offset;
  }
  return { ids_T, labels_T, positions_T, cuSeqlens_B1, ...(weighted ? { lossWeights_T: weights_T } : {}) };
}
