// The kernel table of each instruction set: the reference first, then everything a wider set does better, in order.
#include "cpu/register.h"

#include <initializer_list>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "gen/ops.h"

namespace llm {
namespace {

constexpr int kIsas = cpu::kIsaCount;

#define LLM_ADD_VECTOR(family)                                    \
  add(cpu::Isa::avx2, avx2_##family, avx2_##family##_count);      \
  add(cpu::Isa::avx512, avx512_##family, avx512_##family##_count)

struct Table {
  Kernel kernel[kIsas][op_count] = {};
  cpu::Isa variant[kIsas][op_count] = {};

  void add(cpu::Isa isa, const KernelEntry* entries, int count) {
    for (int level = static_cast<int>(isa); level < kIsas; level++)
      for (int i = 0; i < count; i++) {
        kernel[level][entries[i].op] = entries[i].kernel;
        variant[level][entries[i].op] = isa;
      }
  }

  Table() {
    const auto scalar = cpu::Isa::scalar;
    add(scalar, ref_elementwise, ref_elementwise_count);
    add(scalar, ref_random, ref_random_count);
    add(scalar, ref_matmul, ref_matmul_count);
    add(scalar, ref_layers, ref_layers_count);
    add(scalar, ref_attention, ref_attention_count);
    add(scalar, ref_loss, ref_loss_count);
    add(scalar, ref_optim, ref_optim_count);
    add(scalar, ref_quant, ref_quant_count);
    add(scalar, ref_fp8, ref_fp8_count);
    add(scalar, ref_paged, ref_paged_count);
    add(scalar, ref_sample, ref_sample_count);
#if defined(__x86_64__)
    for (const auto isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512bf16, cpu::Isa::amx}) add(isa, fast_matmul, fast_matmul_count);
    for (const auto isa : {cpu::Isa::avx2, cpu::Isa::avx512}) add(isa, fast_linear, fast_linear_count);
    for (const auto isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512bf16, cpu::Isa::amx}) add(isa, fast_fp8, fast_fp8_count);
    LLM_ADD_VECTOR(layers);
    LLM_ADD_VECTOR(attention);
    LLM_ADD_VECTOR(elementwise);
    LLM_ADD_VECTOR(loss);
    LLM_ADD_VECTOR(optim);
    LLM_ADD_VECTOR(quant);
    LLM_ADD_VECTOR(sample);
#endif
  }
};

const Table& table() {
  static const Table t;
  return t;
}

}  // namespace

Kernel cpu_kernel(int op) { return table().kernel[static_cast<int>(cpu::active_isa())][op]; }

const char* cpu_kernel_variant(int op) { return cpu::isa_name(table().variant[static_cast<int>(cpu::active_isa())][op]); }

}  // namespace llm
