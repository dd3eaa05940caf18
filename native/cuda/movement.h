// Kernels that move bits without looking at them; entries of the table cuda_elementwise.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

const char* fill(Context& ctx, const KernelArgs& k);
const char* contiguous(Context& ctx, const KernelArgs& k);
const char* transpose(Context& ctx, const KernelArgs& k);
const char* concat_rows(Context& ctx, const KernelArgs& k);
const char* concat_cols(Context& ctx, const KernelArgs& k);
const char* gather_rows(Context& ctx, const KernelArgs& k);

// to = from, of one shape and dtype; the first dims may be strided, the two may overlap.
const char* move_view(Context& ctx, const View& to, const View& from);

// Matrices of [rows, cols] whose element (r, c) goes from from[r * from_row + c] to to[c * to_col + r]; one for each index of the batch
// dims. Strides count elements of `size` bytes.
struct Transposition {
  const char* from;
  char* to;
  int64_t rows, cols, from_row, to_col;
  int batch_dims = 0;
  int64_t batch[kMaxDims] = {}, from_batch[kMaxDims] = {}, to_batch[kMaxDims] = {};
};
const char* transpose_tiles(Context& ctx, const Transposition& t, int64_t size);

}  // namespace llm::cuda
