// Attention over packed sequences: the host functions behind the ops `attention` and `attention_bwd`.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

const char* attention_forward(Context& ctx, const KernelArgs& k);
const char* attention_backward(Context& ctx, const KernelArgs& k);

}  // namespace llm::cuda
