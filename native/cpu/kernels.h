// The kernel tables that register.cpp merges: one for each family and instruction set.
#pragma once
#include "core/op.h"

#define LLM_KERNEL_TABLE(name)     \
  extern const KernelEntry name[]; \
  extern const int name##_count;
#define LLM_VECTOR_TABLES(family)  \
  LLM_KERNEL_TABLE(avx2_##family)  \
  LLM_KERNEL_TABLE(avx512_##family)

namespace llm {

LLM_KERNEL_TABLE(ref_elementwise)
LLM_KERNEL_TABLE(ref_random)
LLM_KERNEL_TABLE(ref_matmul)
LLM_KERNEL_TABLE(ref_layers)
LLM_KERNEL_TABLE(ref_attention)
LLM_KERNEL_TABLE(ref_loss)
LLM_KERNEL_TABLE(ref_optim)
LLM_KERNEL_TABLE(ref_quant)
LLM_KERNEL_TABLE(ref_fp8)
LLM_KERNEL_TABLE(ref_paged)
LLM_KERNEL_TABLE(ref_sample)
LLM_KERNEL_TABLE(fast_matmul)
LLM_KERNEL_TABLE(fast_linear)
LLM_KERNEL_TABLE(fast_fp8)
LLM_VECTOR_TABLES(layers)
LLM_VECTOR_TABLES(attention)
LLM_VECTOR_TABLES(elementwise)
LLM_VECTOR_TABLES(loss)
LLM_VECTOR_TABLES(optim)
LLM_VECTOR_TABLES(quant)
LLM_VECTOR_TABLES(sample)

}  // namespace llm
