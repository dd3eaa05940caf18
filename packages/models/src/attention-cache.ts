/** The plain key/value cache: one contiguous stretch of memory a sequence. The reference for every other cache. */
import { type Device, type DType, empty, native, ShapeError, type Tensor, tensor } from "@llm/core";
import type { DecoderSpec } from "./arch/spec.js";
import type { AttentionCache, AttentionMeta } from "./types.js";

/** Sequences b of a fixed batch, each with room for `capacity` tokens. Before each step call `plan` with the rows' sequences. */
export class ContiguousCache implements AttentionCache {
  readonly capacity: number;
  readonly sequences: number;
  private readonly keys: Tensor[];
  private readonly values: Tensor[];
  private step: { slots_T: Tensor; blockTable_B1: Tensor; kvLengths_B: Tensor } | undefined;

  /** @param device default the current one
   *  @param dtype of the stored keys and values, that of the activations */
  constructor(spec: DecoderSpec, sequences: number, capacity: number, dtype: DType, device?: Device) {
    this.capacity = capacity;
    this.sequences = sequences;
    const shape = [sequences, capacity, spec.kvHeads, spec.headDim];
    const make = (): Tensor => empty(shape, dtype, "kv", device).keep();
    this.keys = Array.from({ length: spec.layers }, make);
    this.values = Array.from({ length: spec.layers }, make);
  }

  /**
   * Announces a step: `counts[i]` new tokens of sequence `rows[i]`, which holds `lengths[i]` tokens before.
   * @throws {ShapeError} a sequence outgrows the capacity
   */
  plan(rows: readonly number[], counts: readonly number[], lengths: readonly number[]): void {
    this.endStep();
    const slots: number[] = [];
    rows.forEach((row, i) => {
      if (lengths[i]! + counts[i]! > this.capacity)
        throw new ShapeError(
          `[ContiguousCache] sequence ${row} needs ${lengths[i]! + counts[i]!} tokens, capacity is ${this.capacity}`,
        );
      for (let t = 0; t < counts[i]!; t++) slots.push(row * this.capacity + lengths[i]! + t);
    });
    this.step = {
      slots_T: tensor(Int32Array.from(slots)).keep(),
      blockTable_B1: tensor(Int32Array.from(rows), [rows.length, 1]).keep(),
      kvLengths_B: tensor(Int32Array.from(rows, (_, i) => lengths[i]! + counts[i]!)).keep(),
    };
  }

  append(layer: number, k_TKD: Tensor, v_TKD: Tensor, _meta: AttentionMeta): void {
    native.kvAppend(this.keys[layer]!, null, k_TKD, this.step!.slots_T);
    native.kvAppend(this.values[layer]!, null, v_TKD, this.step!.slots_T);
  }

  attend(layer: number, q_THD: Tensor, meta: AttentionMeta): Tensor {
    const { blockTable_B1, kvLengths_B } = this.step!;
    return native.pagedAttention(
      q_THD,
      this.keys[layer]!,
      this.values[layer]!,
      null,
      null,
      blockTable_B1,
      meta.cuSeqlens_B1,
      kvLengths_B,
      meta.scale,
      meta.window,
    );
  }

  private endStep(): void {
    if (this.step) for (const t of Object.values(this.step)) t.dispose();
    this.step = undefined;
  }

  dispose(): void {
    this.endStep();
    for (const t of [...this.keys, ...this.values]) t.dispose();
  }
}
