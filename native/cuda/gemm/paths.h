// The ways to compute a product, inside native/cuda/gemm only. Each takes a Gemm that its can_… accepts.
#pragma once
#include "cuda/gemm/gemm.h"

namespace llm::cuda {

// Rows as stored and their length.
inline int64_t rows_a(const Gemm& g) { return g.trans_a ? g.k : g.m; }
inline int64_t cols_a(const Gemm& g) { return g.trans_a ? g.m : g.k; }
inline int64_t rows_b(const Gemm& g) { return g.trans_b ? g.n : g.k; }
inline int64_t cols_b(const Gemm& g) { return g.trans_b ? g.k : g.n; }

// True when every row of x starts on a 16-byte border.
inline bool rows_aligned16(const void* x, int64_t ld, DType t) { return aligned16(x) && ld * static_cast<int64_t>(dtype_bytes(t)) % 16 == 0; }

// gemv.cu: m <= 16 rows against b [n, k]; streams b once.
bool can_gemv(const Gemm& g);
const char* gemv(Context& ctx, const Gemm& g);

// library.cu: cuBLASLt. False: no library, or it has no algorithm for this one; nothing was launched then.
bool library_present();
bool library_gemm(Context& ctx, const Gemm& g, const char** error);

// update.cu: k <= 128, one 16-bit dtype, rows of all three on 16-byte borders; as fast as C can be read and written.
bool can_update(const Gemm& g);
const char* update_gemm(Context& ctx, const Gemm& g);

// mma.cu: 16-bit operands of one dtype with 16-byte aligned rows; any result.
bool can_mma(const Gemm& g);
const char* mma_gemm(Context& ctx, const Gemm& g);

// simt.cu: f32 operands; any result.
const char* simt_gemm(Context& ctx, const Gemm& g);

// convert.cu: dst = src in another dtype and with another row distance ld_dst >= cols; what is between its rows becomes zero.
const char* convert(Context& ctx, const void* src, DType from, int64_t ld_src, void* dst, DType to, int64_t ld_dst, int64_t rows, int64_t cols);
// c = alpha * sums + beta * c + bias; `sums` f32 [m, n] dense, null = zeros.
const char* finish(Context& ctx, const Gemm& g, const float* sums);

}  // namespace llm::cuda
