/** Where batches come from: a Dataset of @llm/data (by structure), a list, an iterable or a function; and how a step's data is split. */
import { OptionsError, ShapeError } from "@llm/core";
import type { TokenBatch } from "@llm/models";

/** Options that the trainer hands to `BatchSource.batches`. */
export interface BatchRequest {
  batchSize?: number;
  batchTokens?: number;
  epochs?: number;
  seed?: number;
  /** Batches to leave out at the beginning, counted over all epochs. */
  startStep?: number;
}

/** A data set that is read in batches whose order is a pure function of seed and index. `Dataset` of @llm/data is one. */
export interface BatchSource {
  batches(request: BatchRequest): Iterable<TokenBatch & { epoch?: number }> & { readonly totalSteps: number };
}

/**
 * Training data. A list is passed over `epochs` times in its order; another iterable is read once and skipped forward on resume; a
 * function is asked for the batches from number `start` on. The last two do not know their length: give `steps`.
 */
export type TrainData =
  | BatchSource
  | readonly TokenBatch[]
  | Iterable<TokenBatch>
  | ((start: number) => Iterable<TokenBatch> | AsyncIterable<TokenBatch>);

export interface OpenedData {
  /** Batches from number `start` on. */
  from(start: number): AsyncIterator<TokenBatch & { epoch?: number }> | Iterator<TokenBatch & { epoch?: number }>;
  /** Batches of all epochs; undefined when the source does not say. */
  totalBatches: number | undefined;
  /** Facts that must not change between a run and its resumption. */
  identity: Record<string, number | string>;
}

const isSource = (data: TrainData): data is BatchSource => typeof (data as BatchSource).batches === "function";

/** Any value that `data` may be; for the options schema. */
export const isTrainData = (value: unknown): value is TrainData =>
  typeof value === "function" ||
  (typeof value === "object" &&
    value !== null &&
    (typeof (value as BatchSource).batches === "function" || Symbol.iterator in value));

function numberOf(data: object, key: string): Record<string, number> {
  const value = (data as Record<string, unknown>)[key];
  return typeof value === "number" ? { [key]: value } : {};
}

/** @param request what the options say about batches; `startStep` is filled in here */
export function openData(data: TrainData, request: BatchRequest): OpenedData {
  if (isSource(data)) {
    const open = (startStep: number) => data.batches({ ...request, ...(startStep > 0 ? { startStep } : {}) });
    const { totalSteps } = open(0);
    return {
      from: (start) => open(start)[Symbol.iterator](),
      totalBatches: totalSteps === Infinity ? undefined : totalSteps,
      identity: { ...numberOf(data, "length"), ...numberOf(data, "tokenCount") },
    };
  }
  for (const key of ["batchSize", "batchTokens"] as const) {
    if (request[key] !== undefined)
      throw new OptionsError(`[train] ${key}: the data is given as batches already; it needs a data set (loadDataset)`);
  }
  const epochs = request.epochs ?? 1;
  if (Array.isArray(data)) {
    const list = data as readonly TokenBatch[];
    if (list.length === 0) throw new OptionsError("[train] data: expected at least one batch, got an empty list");
    return {
      from: function* (start) {
        for (let at = start; at < list.length * epochs; at++)
          yield { ...list[at % list.length]!, epoch: Math.floor(at / list.length) };
      },
      totalBatches: epochs === Infinity ? undefined : list.length * epochs,
      identity: { batches: list.length },
    };
  }
  if (epochs !== 1 && epochs !== Infinity)
    throw new OptionsError("[train] epochs: an iterable or function is read once; give `steps`, or a list of batches");
  if (typeof data === "function") {
    return {
      from: (start) => {
        const made = data(start);
        return Symbol.asyncIterator in made ? made[Symbol.asyncIterator]() : made[Symbol.iterator]();
      },
      totalBatches: undefined,
      identity: {},
    };
  }
  const iterable = data as Iterable<TokenBatch>;
  return {
    from: (start) => {
      const iterator = iterable[Symbol.iterator]();
      for (let i = 0; i < start; i++) if (iterator.next().done) break;
      return iterator;
    },
    totalBatches: undefined,
    identity: {},
  };
}

/** @throws {ShapeError} arrays of different lengths, or boundaries that do not cover the tokens */
export function checkBatch(batch: TokenBatch): TokenBatch {
  const { ids_T, labels_T, lossWeights_T, positions_T, cuSeqlens_B1 } = batch;
  const T = ids_T.length;
  const lengths = {
    labels_T: labels_T.length,
    positions_T: positions_T.length,
    ...(lossWeights_T ? { lossWeights_T: lossWeights_T.length } : {}),
  };
  for (const [name, length] of Object.entries(lengths)) {
    if (length !== T) throw new ShapeError(`[train] a batch's ${name} must be [${T}] like ids_T, got [${length}]`);
  }
  if (T === 0 || cuSeqlens_B1[0] !== 0 || cuSeqlens_B1[cuSeqlens_B1.length - 1] !== T) {
    throw new ShapeError(
      `[train] a batch's cuSeqlens_B1 must go from 0 to ${T} (at least one token), got ${cuSeqlens_B1.join(", ")}`,
    );
  }
  return batch;
}

/** Documents [first, end) of a batch as a batch of their own; arrays are views. */
function documents(batch: TokenBatch, first: number, end: number): TokenBatch {
  const start = batch.cuSeqlens_B1[first]!;
  const stop = batch.cuSeqlens_B1[end]!;
  return {
    ids_T: batch.ids_T.subarray(start, stop),
    labels_T: batch.labels_T.subarray(start, stop),
    ...(batch.lossWeights_T ? { lossWeights_T: batch.lossWeights_T.subarray(start, stop) } : {}),
    positions_T: batch.positions_T.subarray(start, stop),
    cuSeqlens_B1: batch.cuSeqlens_B1.subarray(first, end + 1).map((at) => at - start),
  };
}

/**
 * Cuts a batch between documents into parts of at most `maxTokens` tokens; a longer document is a part of its own.
 * Because losses are sums, training on the parts is training on the whole.
 */
export function splitBatch(batch: TokenBatch, maxTokens: number | undefined): TokenBatch[] {
  const { cuSeqlens_B1 } = batch;
  const count = cuSeqlens_B1.length - 1;
  if (maxTokens === undefined || batch.ids_T.length <= maxTokens || count === 1) return [batch];
  const parts: TokenBatch[] = [];
  let first = 0;
  for (let b = 1; b <= count; b++) {
    const next = b < count ? cuSeqlens_B1[b + 1]! : Infinity;
    if (next - cuSeqlens_B1[first]! <= maxTokens) continue;
    parts.push(documents(batch, first, b));
    first = b;
  }
  return parts;
}
