// The ops matmul and matmul_acc over gemm/gemm.h.
#include "cuda/gemm/gemm.h"
#include "cuda/tables.h"

namespace llm::cuda {
namespace {

Gemm operands(const View& a, const View& b, const View& c, bool trans_a, bool trans_b) {
  Gemm g;
  g.m = a.shape[trans_a ? 1 : 0];
  g.k = a.shape[trans_a ? 0 : 1];
  g.n = b.shape[trans_b ? 0 : 1];
  g.a = a.data;
  g.lda = a.stride[0];
  g.trans_a = trans_a;
  g.dtype_a = a.dtype;
  g.b = b.data;
  g.ldb = b.stride[0];
  g.trans_b = trans_b;
  g.dtype_b = b.dtype;
  g.c = c.data;
  g.ldc = c.stride[0];
  g.dtype_c = c.dtype;
  return g;
}

const char* matmul(Context& ctx, const KernelArgs& k) {
  Gemm g = operands(k.in[0], k.in[1], k.out[0], k.attr[0] != 0, k.attr[1] != 0);
  g.ldc = g.n;
  if (k.n_in > 2 && present(k.in[2])) {
    g.bias = k.in[2].data;
    g.dtype_bias = k.in[2].dtype;
  }
  return gemm(ctx, g);
}

const char* matmul_acc(Context& ctx, const KernelArgs& k) {
  Gemm g = operands(k.in[1], k.in[2], k.in[0], k.attr[0] != 0, k.attr[1] != 0);
  g.alpha = static_cast<float>(k.attr[2]);
  g.beta = static_cast<float>(k.attr[3]);
  return gemm(ctx, g);
}

}  // namespace

const CudaEntry cuda_matmul[] = {{op_matmul, matmul}, {op_matmul_acc, matmul_acc}};
const int cuda_matmul_count = sizeof(cuda_matmul) / sizeof(cuda_matmul[0]);

}  // namespace llm::cuda
