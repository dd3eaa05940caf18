// attention_bwd on the host: reads the arguments and picks the kernels. How it works: backward.h.
#include "cuda/attention/attention.h"
#include "cuda/attention/backward.h"

namespace llm::cuda {

const char* attention_backward(Context& ctx, const KernelArgs& k) {
  using namespace gradient;
  const View &grad = k.in[0], &q = k.in[1], &key = k.in[2], &value = k.in[3];
  Problem p{};
  p.grad = grad.data, p.q = q.data, p.k = key.data, p.v = value.data, p.o = k.in[4].data;
  p.lse = data_of<float>(k.in[5]), p.cu_q = data_of<int>(k.in[6]), p.cu_k = data_of<int>(k.in[7]);
  p.dq = k.out[0].data, p.dk = k.out[1].data, p.dv = k.out[2].data;
  p.q_stride = q.stride[0], p.k_stride = key.stride[0], p.v_stride = value.stride[0];
  p.queries = q.shape[0], p.keys = key.shape[0];
  p.heads = static_cast<int>(q.shape[1]), p.key_heads = static_cast<int>(key.shape[1]), p.width = static_cast<int>(q.shape[2]);
  p.sequences = static_cast<int>(k.in[6].shape[0]) - 1;
  p.scale = static_cast<float>(k.attr[0]), p.causal = k.attr[1] != 0;
  p.window = k.attr[2] > 0 && k.attr[2] < static_cast<double>(p.queries + p.keys) ? static_cast<int>(k.attr[2]) : 0;
  p.dtype = q.dtype;
  if (p.heads == 0 || p.width == 0 || (p.queries == 0 && p.keys == 0)) return nullptr;
  if (p.queries + p.keys > (1 << 30)) return "attention_bwd: fewer than 2^30 tokens expected";
  if (hopper_fits(ctx, p)) return hopper(ctx, p, grad, q, key, value);
  return tensor_cores_fit(ctx, p) ? tensor_cores(ctx, p) : generic(ctx, p);
}

}  // namespace llm::cuda
