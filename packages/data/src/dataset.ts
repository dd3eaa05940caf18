import { FormatError, OptionsError, parseOptions } from "@llm/core";
import type { TokenBatch, Tokenizer } from "@llm/models";
import { type DataBatch, packDocuments } from "./batch.js";
import { type BatchesOptions, batchesSchema, type ResolvedDatasetOptions } from "./options.js";
import { permutation } from "./order.js";
import { packBestFitDecreasing } from "./packing.js";
import { type DatasetReport, type LoadCounts, lengthReport } from "./report.js";
import type { EncodedDocument } from "./tokenize-example.js";

/** An encoded document and the row it comes from. */
export interface TokenDocument extends EncodedDocument {
  /** Index into the sources that were loaded. */
  source: number;
  /** Row of the source, from 0. Several documents may come from one row. */
  row: number;
}

/** Batches of a data set in order; every loop over it begins anew at `startStep`. */
export interface BatchSequence extends Iterable<DataBatch> {
  /** Steps of the whole run, those before `startStep` included. Infinity with endless epochs. */
  readonly totalSteps: number;
  /** Steps of one epoch. With `batchTokens` it may differ between epochs. */
  stepsInEpoch(epoch: number): number;
}

/**
 * Encoded documents, grouped into samples (packed, or one each). A sample holds whole documents only, and attention never
 * crosses between them (`cuSeqlens`). Which samples a step sees is a pure function of (seed, epoch, step).
 */
export class Dataset {
  readonly tokenizer: Tokenizer;
  /** Most tokens of a sample. */
  readonly maxTokens: number;
  readonly documents: readonly TokenDocument[];
  /** Tokens of all samples. */
  readonly tokenCount: number;
  /** Labels that are not −100. */
  readonly trainedTokenCount: number;
  readonly #samples: readonly Int32Array[];
  readonly #sampleTokens: Float64Array;
  readonly #options: ResolvedDatasetOptions;
  readonly #counts: LoadCounts;
  #order: { key: string; value: Int32Array } | undefined;

  /** Made by `loadDataset`. @throws {FormatError} no documents */
  constructor(documents: readonly TokenDocument[], options: ResolvedDatasetOptions, counts: LoadCounts) {
    if (documents.length === 0)
      throw new FormatError("[loadDataset] expected at least one document, got none", { rejected: counts.rejected });
    this.tokenizer = options.tokenizer;
    this.maxTokens = options.maxTokens;
    this.documents = documents;
    this.#options = options;
    this.#counts = counts;
    this.#samples =
      options.packing === "pack"
        ? packBestFitDecreasing(
            documents.map((document) => document.ids.length),
            options.maxTokens,
            options.seed,
          )
        : documents.map((_, index) => Int32Array.of(index));
    this.#sampleTokens = Float64Array.from(this.#samples, (sample) =>
      sample.reduce((sum, index) => sum + (documents[index] as TokenDocument).ids.length, 0),
    );
    this.tokenCount = this.#sampleTokens.reduce((sum, count) => sum + count, 0);
    this.trainedTokenCount = documents.reduce((sum, { lossWeights }) => sum + countLearned(lossWeights), 0);
  }

  /** Number of samples. */
  get length(): number {
    return this.#samples.length;
  }

  /** Indices into `documents` that make up a sample. @throws {OptionsError} index outside [0, length) */
  sampleDocuments(index: number): Int32Array {
    const sample = this.#samples[index];
    if (sample === undefined)
      throw new OptionsError(`[Dataset] sample index: expected an integer in [0, ${this.length}), got ${index}`);
    return sample.slice();
  }

  /** One sample as a batch, in the stored order (not shuffled). @throws {OptionsError} index outside [0, length) */
  at(index: number): TokenBatch {
    return packDocuments(Array.from(this.sampleDocuments(index), (at) => this.documents[at] as TokenDocument));
  }

  /** Sample indices in the order that an epoch visits them; a permutation of [0, length). */
  order(epoch: number, options: { seed?: number; shuffle?: boolean } = {}): Int32Array {
    const seed = options.seed ?? this.#options.seed;
    const shuffle = options.shuffle ?? this.#options.shuffle;
    const key = `${seed}/${shuffle}/${epoch}`;
    if (this.#order?.key !== key)
      this.#order = {
        key,
        // epoch + 1: stream 0 decides packing
        value: shuffle
          ? permutation(this.length, seed, epoch + 1)
          : Int32Array.from({ length: this.length }, (_, index) => index),
      };
    return this.#order.value.slice();
  }

  /**
   * Batches for training. Every sample is in exactly one batch of an epoch; the last batch of an epoch may be smaller.
   * @throws {OptionsError} both batchSize and batchTokens, or batchTokens below the longest sample
   */
  batches(options: BatchesOptions = {}): BatchSequence {
    const parsed = parseOptions(batchesSchema, options, "Dataset.batches");
    const { batchTokens, epochs, startStep } = parsed;
    if (parsed.batchSize !== undefined && batchTokens !== undefined)
      throw new OptionsError("[Dataset.batches] expected batchSize or batchTokens, got both");
    const longest = this.#sampleTokens.reduce((most, count) => Math.max(most, count), 0);
    if (batchTokens !== undefined && batchTokens < longest)
      throw new OptionsError(
        `[Dataset.batches] batchTokens: expected at least ${longest} (the longest sample), got ${batchTokens}`,
        { longest, batchTokens },
      );
    const batchSize = parsed.batchSize ?? 1;
    const orderOf = (epoch: number): Int32Array =>
      this.order(epoch, {
        ...(parsed.seed === undefined ? {} : { seed: parsed.seed }),
        ...(parsed.shuffle === undefined ? {} : { shuffle: parsed.shuffle }),
      });

    /** Where the batches of an epoch begin in its order, and the order's length. */
    const startsOf = (order: Int32Array): number[] => {
      const starts: number[] = [];
      if (batchTokens === undefined) for (let at = 0; at < order.length; at += batchSize) starts.push(at);
      else {
        let room = 0;
        for (const [at, sample] of order.entries()) {
          const count = this.#sampleTokens[sample] as number;
          if (count > room) {
            starts.push(at);
            room = batchTokens;
          }
          room -= count;
        }
      }
      starts.push(order.length);
      return starts;
    };
    const stepsInEpoch = (epoch: number): number =>
      batchTokens === undefined ? Math.ceil(this.length / batchSize) : startsOf(orderOf(epoch)).length - 1;
    const makeBatch = (samples: Int32Array, step: number, epoch: number): DataBatch => {
      const documents_B = Int32Array.from(
        Array.from(samples, (sample) => Array.from(this.#samples[sample] as Int32Array)).flat(),
      );
      return {
        ...packDocuments(Array.from(documents_B, (index) => this.documents[index] as TokenDocument)),
        documents_B,
        step,
        epoch,
      };
    };

    function* iterate(): Generator<DataBatch> {
      let step = 0;
      for (let epoch = 0; epoch < epochs; epoch += 1) {
        const fixed = batchTokens === undefined ? stepsInEpoch(epoch) : 0;
        if (fixed > 0 && step + fixed <= startStep) {
          step += fixed;
          continue;
        }
        const order = orderOf(epoch);
        const starts = startsOf(order);
        for (let index = 0; index + 1 < starts.length; index += 1, step += 1)
          if (step >= startStep) yield makeBatch(order.subarray(starts[index], starts[index + 1]), step, epoch);
      }
    }

    let total: number | undefined;
    return {
      stepsInEpoch,
      get totalSteps(): number {
        if (total === undefined) {
          if (batchTokens === undefined || epochs === Infinity) total = stepsInEpoch(0) * epochs;
          else {
            total = 0;
            for (let epoch = 0; epoch < epochs; epoch += 1) total += stepsInEpoch(epoch);
          }
        }
        return total;
      },
      [Symbol.iterator]: iterate,
    };
  }

  /**
   * Divides the set by rows: documents of one row stay on one side. Both sides are packed anew.
   * @param fraction  share of rows for evaluation, in (0, 1); at least one row goes to each side
   * @param options.seed  picks the rows; default the data set's
   */
  split(fraction: number, options: { seed?: number } = {}): { train: Dataset; evaluation: Dataset } {
    if (!(fraction > 0 && fraction < 1))
      throw new OptionsError(`[Dataset.split] fraction: expected a number in (0, 1), got ${fraction}`);
    const groups = new Map<string, number>();
    const groupOf = this.documents.map(({ source, row }) => {
      const key = `${source}/${row}`;
      const group = groups.get(key) ?? groups.size;
      groups.set(key, group);
      return group;
    });
    if (groups.size < 2) throw new FormatError(`[Dataset.split] expected at least 2 rows, got ${groups.size}`);
    const size = Math.min(groups.size - 1, Math.max(1, Math.round(groups.size * fraction)));
    const chosen = new Set(permutation(groups.size, options.seed ?? this.#options.seed, 0).subarray(0, size));
    const side = (evaluation: boolean): Dataset =>
      new Dataset(
        this.documents.filter((_, index) => chosen.has(groupOf[index] as number) === evaluation),
        this.#options,
        this.#counts,
      );
    return { train: side(false), evaluation: side(true) };
  }

  /** What the set holds and what became of its rows. After `split`, the counts of loading are those of the whole. */
  report(): DatasetReport {
    return {
      ...this.#counts,
      samples: this.length,
      documents: this.documents.length,
      tokens: this.tokenCount,
      trainedTokens: this.trainedTokenCount,
      trainedFraction: this.trainedTokenCount / this.tokenCount,
      fill: this.tokenCount / (this.length * this.maxTokens),
      lengths: lengthReport(this.documents.map((document) => document.ids.length)),
    };
  }
}

function countLearned(weights: Float32Array): number {
  let count = 0;
  for (let index = 1; index < weights.length; index += 1) if ((weights[index] as number) > 0) count += 1;
  return count;
}
