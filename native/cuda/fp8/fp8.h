// Products in 8-bit floating point (e4m3: sign, 4 bits of exponent, 3 of mantissa; largest 448, no infinity) with a scale a row.
//
// A row x is kept as codes q and one f32 scale: amax = max(|x|, 1e-30), scale = amax / 448, q = e4m3(x * (448 / amax)), rounded to nearest
// even, and x stands for q * scale. NaN becomes a code that is NaN. The same bits as on the CPU (native/core/fp8.h).
#pragma once
#include <cuda_fp8.h>

#include "cuda/kernel.cuh"

namespace llm::cuda {

// q [rows, cols] dense, scales [rows]. x has `ld` elements between rows; with `factor` f32 [cols], x[r, c] * factor[c] is what is encoded.
const char* encode_fp8(Context& ctx, const void* x, DType dtype, int64_t ld, int64_t rows, int64_t cols, const float* factor, uint8_t* q, float* scales);

// What a code stands for; 16-bit floats hold it exactly.
__device__ inline float fp8_value(uint8_t code) { return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3))); }

const char* quantize_fp8(Context& ctx, const KernelArgs& k);    // encode.cu
const char* dequantize_fp8(Context& ctx, const KernelArgs& k);  // encode.cu
const char* linear_fp8(Context& ctx, const KernelArgs& k);      // linear.cu
const char* linear_fp8_bwd(Context& ctx, const KernelArgs& k);  // linear.cu

}  // namespace llm::cuda
