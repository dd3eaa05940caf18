// Weight-only quantized linears over cpu/qgemm.h, and the sizes of their packed weights. Groups that qgemm does not take (not a
// multiple of 32 and shorter than the row) keep the reference's layout and kernels; so does the scalar variant.
#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/packed.h"
#include "cpu/qgemm.h"
#include "gen/ops.h"

namespace llm {
namespace {

cpu::QWeight weight_of(int64_t n, int64_t c, int64_t group, int bits) {
  cpu::QWeight w;
  w.n = n;
  w.k = c;
  w.group = group >= c ? (group + 31) / 32 * 32 : group;
  w.bits = bits;
  w.scale_type = cpu::Dt::f32;
  w.has_zeros = bits == 4;
  return w;
}

bool fast(const cpu::QWeight& w) { return cpu::active_isa() != cpu::Isa::scalar && cpu::qweight_error(w) == nullptr; }

Kernel reference(int op) {
  for (int i = 0; i < ref_quant_count; i++)
    if (ref_quant[i].op == op) return ref_quant[i].kernel;
  return nullptr;
}

const char* repack_w4(const KernelArgs& k) {
  const cpu::QWeight w = weight_of(k.in[0].shape[0], k.in[0].shape[1] * 2, static_cast<int64_t>(k.attr[0]), 4);
  if (!fast(w)) return reference(op_repack_w4)(k);
  cpu::repack_w4(w, reinterpret_cast<const uint8_t*>(k.in[0].data), k.in[1].data, reinterpret_cast<const uint8_t*>(k.in[2].data), k.out[0].data);
  return nullptr;
}

const char* repack_q8(const KernelArgs& k) {
  const cpu::QWeight w = weight_of(k.in[0].shape[0], k.in[0].shape[1], static_cast<int64_t>(k.attr[0]), 8);
  if (!fast(w)) return reference(op_repack_q8)(k);
  cpu::repack_q8(w, reinterpret_cast<const int8_t*>(k.in[0].data), k.in[1].data, k.out[0].data);
  return nullptr;
}

const char* linear(const KernelArgs& k, int bits, int op) {
  const View &x = k.in[0], &y = k.out[0];
  const cpu::QWeight w = weight_of(static_cast<int64_t>(k.attr[0]), static_cast<int64_t>(k.attr[1]), static_cast<int64_t>(k.attr[2]), bits);
  if (!fast(w)) return reference(op)(k);
  cpu::QGemmArgs g;
  g.m = x.shape[0];
  g.x = x.data;
  g.ldx = x.stride[0];
  g.x_type = static_cast<cpu::Dt>(x.dtype);
  g.packed = k.in[1].data;
  g.y = y.data;
  g.ldy = w.n;
  g.y_type = static_cast<cpu::Dt>(y.dtype);
  if (k.n_in > 2 && k.in[2].data != nullptr) {
    g.bias = k.in[2].data;
    g.bias_type = static_cast<cpu::Dt>(k.in[2].dtype);
  }
  g.mode = k.attr[3] != 0 ? cpu::QMode::int8 : cpu::QMode::exact;
  if (bits == 4) cpu::gemm_w4(w, g);
  else cpu::gemm_q8(w, g);
  return nullptr;
}

const char* linear_w4(const KernelArgs& k) { return linear(k, 4, op_linear_w4); }
const char* linear_q8(const KernelArgs& k) { return linear(k, 8, op_linear_q8); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t packed_w4_bytes(int64_t n, int64_t c, int64_t group) {
  const cpu::QWeight w = weight_of(n, c, group, 4);
  return fast(w) ? static_cast<int64_t>(cpu::packed_bytes(w)) : n * (c / 2 + ceil_div(c, group) * 5);
}

int64_t packed_q8_bytes(int64_t n, int64_t c, int64_t group) {
  const cpu::QWeight w = weight_of(n, c, group, 8);
  return fast(w) ? static_cast<int64_t>(cpu::packed_bytes(w)) : n * (c + ceil_div(c, group) * 4);
}

const KernelEntry fast_linear[] = {{op_repack_w4, repack_w4}, {op_linear_w4, linear_w4}, {op_repack_q8, repack_q8}, {op_linear_q8, linear_q8}};
const int fast_linear_count = sizeof(fast_linear) / sizeof(fast_linear[0]);

}  // namespace llm
