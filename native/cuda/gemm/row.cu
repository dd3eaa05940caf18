// Chooses the shape of row_kernel. The numbers are the fastest of those measured on an H200, in a chain of 28 products with their neighbours.
#include "cuda/gemm/row.cuh"

#include "cuda/gemm/paths.h"

namespace llm::cuda {
namespace {

Split norm_split(int k) {
  return split_of(true, k / 8, k, [](int) { return 128; });
}

template <class T, int rows, int ahead, bool Norm, bool Gate>
const char* start(Context& ctx, const RowProduct& p, int split, int per_sm) {
  const int n = Gate ? p.n / 2 : p.n;
  const RowShape shape{split, static_cast<int>(ceil_div(n, static_cast<int64_t>(ctx.sms) * per_sm))};
  launch(ctx, row_kernel<T, rows, ahead, Norm, Gate>, static_cast<unsigned>(ceil_div(n, shape.rows_of_block)), kRowThreads, Norm ? p.k * 2 : 0, p, shape);
  return launched();
}

// The split decides the order of sums, so it depends on the weight alone: a product has the same bits whatever is fused with it.
int split_for(const Context& ctx, const RowProduct& p) {
  int split = p.k > 3072 || p.n <= ctx.sms * 12 ? 8 : 2;
  while (split > 1 && split / 2 * 32 * 8 >= p.k) split /= 2;
  return split;
}

template <class T, bool Norm, bool Gate>
const char* choose(Context& ctx, const RowProduct& p) {
  const int split = split_for(ctx, p);
  if (p.k <= 3072) {
    if (p.n > ctx.sms * 12 && p.n <= ctx.sms * 32) return start<T, 2, 4, Norm, Gate>(ctx, p, split, 2);
    return start<T, 4, 1, Norm, Gate>(ctx, p, split, 3);
  }
  // As many blocks as a multiprocessor holds (row_kernel's launch bounds): all run at once, and none runs alone afterwards.
  if constexpr (!Norm) {
    if (p.n <= ctx.sms * 16) return start<T, 4, 3, Norm, Gate>(ctx, p, split, 3);
  }
  return start<T, 4, 2, Norm, Gate>(ctx, p, split, 3);
}

template <class T>
const char* run(Context& ctx, const RowProduct& p) {
  if (p.norm) return p.gated ? choose<T, true, true>(ctx, p) : choose<T, true, false>(ctx, p);
  return p.gated ? choose<T, false, true>(ctx, p) : choose<T, false, false>(ctx, p);
}

}  // namespace

bool can_row_product(const Context& ctx, DType type, const RowProduct& p) {
  if (ctx.arch < 90 || p.n == 0 || p.k <= 128 || p.k % 8 != 0 || p.k > INT32_MAX / 16 || p.n > (1 << 30)) return false;
  if (!rows_aligned16(p.w, p.ldw, type) || (p.gated && p.n % 2 != 0)) return false;
  for (const void* v : {p.x, p.norm, p.residual, static_cast<const void*>(p.normed), static_cast<const void*>(p.sum)})
    if (!aligned16(v)) return false;
  if (!p.norm) return true;
  const Split s = norm_split(p.k);
  return s.packs_per_thread > 0 && s.packs_per_thread <= kRowPacks && s.lanes <= kRowThreads;
}

const char* row_product(Context& ctx, DType type, RowProduct p) {
  if (p.norm) p.lanes = norm_split(p.k).lanes;
  return type == DType::bf16 ? run<bf16>(ctx, p) : run<f16>(ctx, p);
}

}  // namespace llm::cuda
