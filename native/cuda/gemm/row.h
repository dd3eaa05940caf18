// One row of x against a weight, with its neighbours in a decoder: see row.cuh. Used by gemv.cu, and by fuse.cu where neighbours fit.
#pragma once
#include "cuda/gemm/epilogue.cuh"

namespace llm::cuda {

constexpr int kRowPacks = 2;  // of 16 bytes that a thread holds of a row to be normed

struct RowProduct {
  const void *w, *x;
  int64_t ldw;
  int n, k;
  Epilogue e;  // y and the bias
  const void *norm, *residual;  // weight of the norm, or null; residual: what is added before, or null
  void *normed, *sum;           // what the norm's op would have written
  float* rstd;
  float eps;
  void* gated;        // or null
  const void* other;  // with `added`
  void* added;        // or null
  bool settled;       // no earlier command that may still run writes w
  int lanes;          // of the norm; row_product() sets it
};

// Whether row_product takes it: shapes, alignment and the card. x, w and all outputs but y are of `type`, 16 bits wide.
bool can_row_product(const Context& ctx, DType type, const RowProduct& p);
const char* row_product(Context& ctx, DType type, RowProduct p);

}  // namespace llm::cuda
