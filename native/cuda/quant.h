// The quantization kernels, by file; quant.cu holds the table. Forms of a weight [n, k] (k contiguous, groups along k, the last may be short):
//   W4   q u8 [n, k/2], low nibble first; scale f32 [n, groups]; zero u8 [n, groups] (0..15).   w = (q - zero) * scale
//   Q8   q i8 [n, k]; scale f32 [n, groups].                                                     w = q * scale
//   NF4  q u8 [numel/2], first element in the high nibble; absmax f32 [blocks].                  w = table[q] * absmax
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

const char* quantize_w4(Context& ctx, const KernelArgs& k);  // quant_encode.cu
const char* quantize_q8(Context& ctx, const KernelArgs& k);
const char* quantize_nf4(Context& ctx, const KernelArgs& k);
const char* dequantize_w4(Context& ctx, const KernelArgs& k);  // quant_decode.cu
const char* dequantize_q8(Context& ctx, const KernelArgs& k);
const char* dequantize_nf4(Context& ctx, const KernelArgs& k);
const char* repack_w4(Context& ctx, const KernelArgs& k);  // quant_pack.cu
const char* repack_q8(Context& ctx, const KernelArgs& k);
const char* linear_w4(Context& ctx, const KernelArgs& k);  // quant_linear.cu
const char* linear_q8(Context& ctx, const KernelArgs& k);
const char* awq_clip_search(Context& ctx, const KernelArgs& k);  // quant_awq.cu

// The whole number nearest to x / scale (halves to even), the same as of the rounded quotient: by the reciprocal, which is off by less than
// 1e-4 while the quotient is below 256, and by a division where that could matter. Above 256 every code is at its limit either way.
__device__ inline float nearest_multiple(float x, float scale, float inverse) {
  constexpr float kShift = 12582912.f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const float quotient = x * inverse, whole = (quotient + kShift) - kShift;
  if (fabsf(fabsf(quotient - whole) - 0.5f) > 1e-4f) return whole;
  return rintf(__fdiv_rn(x, scale));  // near a half, or not finite
}

// A 4-bit quantizer, every step as on the CPU, to the bit.
struct W4Quantizer {
  float scale, zero, inverse;
  __device__ static W4Quantizer of(float scale, float zero) { return W4Quantizer{scale, zero, __frcp_rn(scale)}; }
  // Of an asymmetric group from its extremes.
  __device__ static W4Quantizer between(float low, float high) {
    const float scale = __fdiv_rn(fmaxf(high - low, 1e-5f), 15.f);
    return of(scale, fminf(15.f, fmaxf(0.f, -rintf(__fdiv_rn(low, scale)))));
  }
  __device__ float code(float w) const { return fminf(15.f, fmaxf(0.f, nearest_multiple(w, scale, inverse) + zero)); }
};

}  // namespace llm::cuda
