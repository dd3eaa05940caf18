/** Keys and values in blocks shared by all sequences. T tokens of a step, B sequences, K key/value heads, D head width. */
import { type DType, empty, native, type Tensor } from "@llm/core";
import type { AttentionCache, AttentionMeta, DecoderSpec } from "@llm/models";
import type { BlockCopy } from "./block-table.js";
import type { KvDtype } from "./budget.js";

export interface PagedCacheOptions {
  blockCount: number;
  /** Tokens a block. */
  blockSize: number;
  /** "int8" stores each token and head with its own scale and minimum. */
  dtype: KvDtype;
}

/** Where a step's tokens go and what each sequence may read; tensors, so that a Plan can be replayed with other values. */
export interface PagedStep {
  /** i32 [T] block · blockSize + offset; negative = store nothing. */
  slots_T: Tensor;
  /** i32 [B, width] */
  blockTables: Tensor;
  /** i32 [B] tokens in the cache after this step, its own included. */
  kvLengths_B: Tensor;
}

/**
 * The paged cache: per layer two tensors [blocks, blockSize, K, D] (and scales f32 [blocks, blockSize, K, 2] when int8).
 * Set `step` before each forward pass.
 * @see Kwon et al. 2023 (PagedAttention), arXiv:2309.06180
 */
export class PagedCache implements AttentionCache {
  readonly blockCount: number;
  readonly blockSize: number;
  readonly dtype: KvDtype;
  step: PagedStep | undefined;
  private readonly keys: Tensor[] = [];
  private readonly values: Tensor[] = [];
  private readonly keyScales: Tensor[] = [];
  private readonly valueScales: Tensor[] = [];

  constructor(spec: Pick<DecoderSpec, "layers" | "kvHeads" | "headDim">, options: PagedCacheOptions) {
    this.blockCount = options.blockCount;
    this.blockSize = options.blockSize;
    this.dtype = options.dtype;
    const stored: DType = options.dtype === "int8" ? "i8" : options.dtype;
    const make = (width: number, dtype: DType): Tensor =>
      empty([options.blockCount, options.blockSize, spec.kvHeads, width], dtype, "kv").keep();
    for (let layer = 0; layer < spec.layers; layer++) {
      this.keys.push(make(spec.headDim, stored));
      this.values.push(make(spec.headDim, stored));
      if (options.dtype !== "int8") continue;
      this.keyScales.push(make(2, "f32"));
      this.valueScales.push(make(2, "f32"));
    }
  }

  append(layer: number, k_TKD: Tensor, v_TKD: Tensor, _meta: AttentionMeta): void {
    const { slots_T } = this.step!;
    native.kvAppend(this.keys[layer]!, this.keyScales[layer] ?? null, k_TKD, slots_T);
    native.kvAppend(this.values[layer]!, this.valueScales[layer] ?? null, v_TKD, slots_T);
  }

  attend(layer: number, q_THD: Tensor, meta: AttentionMeta): Tensor {
    const { blockTables, kvLengths_B } = this.step!;
    return native.pagedAttention(
      q_THD,
      this.keys[layer]!,
      this.values[layer]!,
      this.keyScales[layer] ?? null,
      this.valueScales[layer] ?? null,
      blockTables,
      meta.cuSeqlens_B1,
      kvLengths_B,
      meta.scale,
      meta.window,
    );
  }

  /** Copies whole blocks in all layers; call before the step that writes into the targets. */
  copyBlocks(copies: readonly BlockCopy[]): void {
    for (const { source, target } of copies) {
      for (const t of [...this.keys, ...this.values, ...this.keyScales, ...this.valueScales])
        native.copy(t.rows(target, target + 1), t.rows(source, source + 1));
    }
  }

  /** Bytes of all blocks. */
  get bytes(): number {
    return [...this.keys, ...this.values, ...this.keyScales, ...this.valueScales].reduce((n, t) => n + t.bytes, 0);
  }

  dispose(): void {
    for (const t of [...this.keys, ...this.values, ...this.keyScales, ...this.valueScales]) t.dispose();
  }
}
