import type { BlockCopy, SequenceBlocks } from "@llm/kvcache";
import type { ScheduleRequest, Sequence } from "./scheduler-sequence.js";

/** One sequence's share of a step. */
export interface StepEntry<TRequest extends ScheduleRequest = ScheduleRequest> {
  sequence: Sequence<TRequest>;
  /** Position of its first token in this step. */
  startToken: number;
  tokenCount: number;
  /** The step computes prompt tokens of this sequence. */
  isPrefill: boolean;
  /** The last token's logits are sampled. False for all but the last chunk of a prompt. */
  samplesToken: boolean;
  /** The logits of all its tokens are wanted (rows cuSeqlens[i] … cuSeqlens[i+1] − 1); index them by `startToken`. */
  promptLogits: boolean;
}

/**
 * What one forward pass computes: T tokens of B sequences on one flat axis. Arrays are views of buffers that the next
 * `schedule()` overwrites.
 */
export interface StepPlan<TRequest extends ScheduleRequest = ScheduleRequest> {
  /** Entries with one token come first, `decodeCount` of them. */
  entries: readonly StepEntry<TRequest>[];
  decodeCount: number;
  /** [T] token ids. */
  ids: Int32Array;
  /** [T] position of each token in its sequence. */
  positions: Int32Array;
  /** [T] where its key and value go: block · blockSize + offset. */
  slots: Int32Array;
  /** [B+1] boundaries of the entries on the flat axis. */
  cuSeqlens: Int32Array;
  /** [B] tokens in the cache after this step, this step's included. */
  kvLengths: Int32Array;
  /** [B, blockTableWidth] block ids; beyond ⌈kvLength / blockSize⌉ the values mean nothing. */
  blockTables: Int32Array;
  blockTableWidth: number;
  /** [S] rows of the flat axis to sample, in the order of the entries with `samplesToken`. */
  sampleRows: Int32Array;
  /** Blocks to copy before anything of the step is written. */
  copies: readonly BlockCopy[];
}

/** Collects a step into buffers that live as long as the scheduler. */
export class StepBuilder<TRequest extends ScheduleRequest> {
  readonly blockTableWidth: number;
  readonly #ids: Int32Array;
  readonly #positions: Int32Array;
  readonly #slots: Int32Array;
  readonly #cuSeqlens: Int32Array;
  readonly #kvLengths: Int32Array;
  readonly #blockTables: Int32Array;
  readonly #sampleRows: Int32Array;
  /** Whose table a row of #blockTables holds since the last step, and how many of its blocks: mostly only new ones are written. */
  readonly #rowBlocks: (SequenceBlocks | undefined)[];
  readonly #rowCounts: Int32Array;
  readonly #rowCopyCounts: Int32Array;
  #entries: StepEntry<TRequest>[] = [];
  #copies: BlockCopy[] = [];
  #tokenCount = 0;
  #sampleCount = 0;

  constructor(maxBatchTokens: number, maxBatchSize: number, blockTableWidth: number) {
    this.blockTableWidth = blockTableWidth;
    this.#ids = new Int32Array(maxBatchTokens);
    this.#positions = new Int32Array(maxBatchTokens);
    this.#slots = new Int32Array(maxBatchTokens);
    this.#cuSeqlens = new Int32Array(maxBatchSize + 1);
    this.#kvLengths = new Int32Array(maxBatchSize);
    this.#blockTables = new Int32Array(maxBatchSize * blockTableWidth);
    this.#sampleRows = new Int32Array(maxBatchSize);
    this.#rowBlocks = Array.from({ length: maxBatchSize }, () => undefined);
    this.#rowCounts = new Int32Array(maxBatchSize);
    this.#rowCopyCounts = new Int32Array(maxBatchSize);
  }

  get tokenCount(): number {
    return this.#tokenCount;
  }

  begin(): void {
    this.#entries = [];
    this.#copies = [];
    this.#tokenCount = 0;
    this.#sampleCount = 0;
  }

  /** @param copies  what `reserve` returned for this sequence in this step */
  add(sequence: Sequence<TRequest>, tokenCount: number, copies: readonly BlockCopy[]): void {
    for (const copy of copies) this.#copies.push(copy);
    const startToken = sequence.computed;
    const end = startToken + tokenCount;
    const row = this.#entries.length;
    const table = sequence.blocks!;
    const { blocks, blockSize } = table;
    let t = this.#tokenCount;
    for (let position = startToken; position < end; position++, t++) {
      const index = Math.floor(position / blockSize);
      this.#ids[t] = sequence.tokens[position]!;
      this.#positions[t] = position;
      this.#slots[t] = blocks[index]! * blockSize + (position - index * blockSize);
    }
    const used = Math.ceil(end / blockSize);
    const offset = row * this.blockTableWidth;
    const known =
      this.#rowBlocks[row] === table && this.#rowCopyCounts[row] === table.copyCount ? this.#rowCounts[row]! : 0;
    for (let i = known; i < used; i++) this.#blockTables[offset + i] = blocks[i]!;
    this.#rowBlocks[row] = table;
    this.#rowCounts[row] = used;
    this.#rowCopyCounts[row] = table.copyCount;
    const samplesToken = end === sequence.length && sequence.length < sequence.maxLength;
    if (samplesToken) this.#sampleRows[this.#sampleCount++] = t - 1;
    this.#tokenCount = t;
    this.#cuSeqlens[row + 1] = t;
    this.#kvLengths[row] = end;
    this.#entries.push({
      sequence,
      startToken,
      tokenCount,
      isPrefill: startToken < sequence.promptLength,
      samplesToken,
      promptLogits: wantsPromptLogits(sequence),
    });
  }

  /** @param decodeCount  how many of the added entries, the first ones, have one token */
  finish(decodeCount: number): StepPlan<TRequest> {
    const rows = this.#entries.length;
    return {
      entries: this.#entries,
      decodeCount,
      ids: this.#ids.subarray(0, this.#tokenCount),
      positions: this.#positions.subarray(0, this.#tokenCount),
      slots: this.#slots.subarray(0, this.#tokenCount),
      cuSeqlens: this.#cuSeqlens.subarray(0, rows + 1),
      kvLengths: this.#kvLengths.subarray(0, rows),
      blockTables: this.#blockTables.subarray(0, rows * this.blockTableWidth),
      blockTableWidth: this.blockTableWidth,
      sampleRows: this.#sampleRows.subarray(0, this.#sampleCount),
      copies: this.#copies,
    };
  }
}

/** Whether the sequence still owes the logits of its prompt positions. */
export function wantsPromptLogits(sequence: Sequence): boolean {
  return sequence.request.promptLogits === true && sequence.index === 0 && !sequence.promptLogitsDone;
}
