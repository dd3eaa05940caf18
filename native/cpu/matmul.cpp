// Matrix product kernels over cpu/gemm.h, for every instruction set but the scalar one.
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "gen/ops.h"

namespace llm {
namespace {

cpu::Dt dt(DType t) { return static_cast<cpu::Dt>(t); }  // the float types have the same codes
static_assert(static_cast<int>(cpu::Dt::f16) == static_cast<int>(DType::f16) && static_cast<int>(cpu::Dt::bf16) == static_cast<int>(DType::bf16));

cpu::GemmArgs operands(const View& a, const View& b, const View& c, bool trans_a, bool trans_b) {
  cpu::GemmArgs g;
  g.m = a.shape[trans_a ? 1 : 0];
  g.k = a.shape[trans_a ? 0 : 1];
  g.n = b.shape[trans_b ? 0 : 1];
  g.a = a.data;
  g.lda = a.stride[0];
  g.trans_a = trans_a;
  g.a_type = dt(a.dtype);
  g.b = b.data;
  g.ldb = b.stride[0];
  g.trans_b = trans_b;
  g.b_type = dt(b.dtype);
  g.c = c.data;
  g.c_type = dt(c.dtype);
  return g;
}

const char* matmul(const KernelArgs& k) {
  cpu::GemmArgs g = operands(k.in[0], k.in[1], k.out[0], k.attr[0] != 0, k.attr[1] != 0);
  g.ldc = g.n;
  if (k.n_in > 2 && k.in[2].data != nullptr) {
    g.bias = k.in[2].data;
    g.bias_type = dt(k.in[2].dtype);
  }
  cpu::gemm(g);
  return nullptr;
}

const char* matmul_acc(const KernelArgs& k) {
  cpu::GemmArgs g = operands(k.in[1], k.in[2], k.in[0], k.attr[0] != 0, k.attr[1] != 0);
  g.ldc = k.in[0].stride[0];
  g.alpha = static_cast<float>(k.attr[2]);
  g.beta = static_cast<float>(k.attr[3]);
  cpu::gemm(g);
  return nullptr;
}

}  // namespace

const KernelEntry fast_matmul[] = {{op_matmul, matmul}, {op_matmul_acc, matmul_acc}};
const int fast_matmul_count = sizeof(fast_matmul) / sizeof(fast_matmul[0]);

}  // namespace llm
