// The op `attention`: reads the arguments and chooses among the kernels.
#include <algorithm>
#include <cmath>

#include "cuda/attention/attention.h"
#include "cuda/attention/forward.h"

namespace llm::cuda {

Forward forward_of(const Context& ctx, const KernelArgs& k) {
  Forward f;
  f.q = k.in[0];
  f.k = k.in[1];
  f.v = k.in[2];
  f.o = k.out[0].data;
  f.lse = data_of<float>(k.out[1]);
  f.packed = packed_of(ctx, f.q, f.k, k.in[3], k.in[4], k.attr);
  f.heads = static_cast<int>(f.q.shape[1]);
  f.group = static_cast<int>(f.q.shape[1] / f.k.shape[1]);
  f.scale = k.attr[0];
  // Half of the cache for keys and values; at least one key head.
  const int64_t bytes = 2 * f.k.shape[0] * f.k.shape[2] * static_cast<int64_t>(dtype_bytes(f.k.dtype));
  f.together = f.group * static_cast<int>(std::clamp<int64_t>(ctx.l2_bytes / 2 / std::max<int64_t>(1, bytes), 1, f.k.shape[1]));
  return f;
}

const char* attention_forward(Context& ctx, const KernelArgs& k) {
  if (k.in[0].shape[0] == 0 || k.in[0].shape[1] == 0) return nullptr;
  if (k.in[0].shape[0] >= int64_t{1} << 31 || k.in[1].shape[0] >= int64_t{1} << 31) return "fewer than 2^31 tokens expected";
  const Forward f = forward_of(ctx, k);
  // The tensor core kernels take the maximum of q.k, which is that of scale q.k only for a positive scale.
  if (f.scale > 0 && std::isfinite(f.scale)) {
    if (forward_hopper_fits(ctx, f)) return forward_hopper(ctx, f);
    if (forward_mma_fits(f)) return forward_mma(ctx, f);
  }
  return forward_generic(ctx, f);
}

}  // namespace llm::cuda
