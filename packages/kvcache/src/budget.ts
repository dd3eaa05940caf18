import { OutOfMemoryError, parseOptions } from "@llm/core";
import * as v from "valibot";

/** Element types of the cache. `int8` adds a scale and a minimum (f32 each) per token and head, for keys and for values. */
export const kvDtypes = ["f32", "f16", "bf16", "int8"] as const;
/** One of {@link kvDtypes}. */
export type KvDtype = (typeof kvDtypes)[number];

const elementBytes: Record<KvDtype, number> = { f32: 4, f16: 2, bf16: 2, int8: 1 };

const positive = v.pipe(v.number(), v.safeInteger(), v.minValue(1));

export const kvBudgetSchema = v.strictObject({
  /** Memory free after weights and workspace, in bytes. */
  freeBytes: v.pipe(v.number(), v.finite(), v.minValue(0)),
  /** In (0, 1): that fraction of `freeBytes`. An integer ≥ 1: that many blocks. @default 0.8 */
  maxEntryCount: v.optional(
    v.pipe(
      v.number(),
      v.check(
        (value) => (value > 0 && value < 1) || (value >= 1 && Number.isSafeInteger(value)),
        "expected a fraction in (0, 1) or a whole number of blocks",
      ),
    ),
    0.8,
  ),
  /** Tokens a block. @default 16 */
  blockSize: v.optional(positive, 16),
  layers: positive,
  kvHeads: positive,
  headDim: positive,
  /** @default "bf16" */
  dtype: v.optional(v.picklist(kvDtypes), "bf16"),
});

export type KvBudgetOptions = v.InferInput<typeof kvBudgetSchema>;

/**
 * Bytes of one block over all layers:
 * blockSize · layers · kvHeads · 2 · (headDim · bytes(dtype) + 8 if int8).
 */
export function kvBlockBytes(
  options: Pick<v.InferOutput<typeof kvBudgetSchema>, "blockSize" | "layers" | "kvHeads" | "headDim" | "dtype">,
): number {
  const perHead = options.headDim * elementBytes[options.dtype] + (options.dtype === "int8" ? 8 : 0);
  return options.blockSize * options.layers * options.kvHeads * 2 * perHead;
}

/**
 * How many blocks a cache gets. Pure.
 * @returns ⌊freeBytes · maxEntryCount / blockBytes⌋, or `maxEntryCount` itself when it is a number of blocks
 * @throws {OptionsError} a value out of range
 * @throws {OutOfMemoryError} not even one block fits, or the asked number of blocks does not; `data` has the byte counts
 */
export function planKvBudget(options: KvBudgetOptions): number {
  const plan = parseOptions(kvBudgetSchema, options, "planKvBudget");
  const blockBytes = kvBlockBytes(plan);
  const count =
    plan.maxEntryCount < 1 ? Math.floor((plan.freeBytes * plan.maxEntryCount) / blockBytes) : plan.maxEntryCount;
  if (count < 1 || count * blockBytes > plan.freeBytes) {
    throw new OutOfMemoryError(
      `[planKvBudget] expected room for ${Math.max(count, 1)} block(s) of ${blockBytes} bytes, got ${plan.freeBytes} free bytes; ` +
        `lower blockSize, use a smaller dtype (now ${plan.dtype}) or change maxEntryCount (now ${plan.maxEntryCount})`,
      { requestedBytes: Math.max(count, 1) * blockBytes, freeBytes: plan.freeBytes, blockBytes },
    );
  }
  return count;
}
