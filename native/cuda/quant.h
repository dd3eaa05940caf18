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

// Codes of values that are whole multiples of a scale, clamped to [low, high]: rint(x / scale) with the quotient rounded as on the CPU, to
// the bit. By the reciprocal, which is off by less than 1e-4; where the quotient lies that near to a half a division decides. NaN is `high` or
// `low`.
template <bool nan_is_high>
struct Multiples {
  static constexpr float kShift = 12582912.f;  // 1.5 * 2^23: adding it rounds to whole numbers, and its low bits are 0
  float scale, inverse, low, high;
  __device__ static Multiples of(float scale, float low, float high) { return Multiples{scale, __frcp_rn(scale), low, high}; }

  __device__ float clamped(float q) const { return nan_is_high ? fmaxf(low, fminf(high, q)) : fminf(high, fmaxf(low, q)); }
  __device__ float exactly(float x) const { return clamped(rintf(__fdiv_rn(x, scale))); }
  // The rounded quotient + kShift; `unsure` when a division must decide.
  __device__ float shifted(float x, bool& unsure) const {
    const float quotient = clamped(x * inverse), whole = quotient + kShift;
    unsure |= fabsf(quotient - (whole - kShift)) > 0.4999f;
    return whole;
  }
  __device__ bool invertible() const { return inverse < INFINITY; }
};

// A 4-bit quantizer: code = multiple + zero.
struct W4Quantizer {
  Multiples<false> multiples;
  float zero;
  __device__ static W4Quantizer of(float scale, float zero) { return W4Quantizer{Multiples<false>::of(scale, -zero, 15.f - zero), zero}; }
  // Of an asymmetric group from its extremes.
  __device__ static W4Quantizer between(float low, float high) {
    const float scale = __fdiv_rn(fmaxf(high - low, 1e-5f), 15.f);
    return of(scale, fminf(15.f, fmaxf(0.f, -rintf(__fdiv_rn(low, scale)))));
  }
  // What the code of x stands for.
  __device__ float rounded(float x) const {
    bool unsure = !multiples.invertible();
    float multiple = multiples.shifted(x, unsure) - Multiples<false>::kShift;
    if (unsure) multiple = multiples.exactly(x);
    return multiple * multiples.scale;
  }
};

}  // namespace llm::cuda
