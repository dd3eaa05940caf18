/**
 * Element types of tensors. `i4` and `nf4` are packed two to a byte (low nibble first for i4; first element in the high
 * nibble for nf4, as bitsandbytes) and appear as u8 storage: quantized linears hold them with their scales.
 */
export type DType = "f32" | "f16" | "bf16" | "i32" | "i8" | "u8" | "i64";

/** Order fixes the codes shared with the native core (`native/core/dtype.h`). */
export const dtypes: readonly DType[] = ["f32", "f16", "bf16", "i32", "i8", "u8", "i64"];

const bytes: Record<DType, number> = { f32: 4, f16: 2, bf16: 2, i32: 4, i8: 1, u8: 1, i64: 8 };

/** Size of one element in bytes. */
export function dtypeBytes(dtype: DType): number {
  return bytes[dtype];
}

/** Arrays that tensors are made of and read into; a Uint16Array holds the bits of bf16 or f16. */
export type TypedArray = Float32Array | Uint16Array | Int32Array | Int8Array | Uint8Array | BigInt64Array;
