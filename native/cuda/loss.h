// The losses that have a file of their own; loss.cu holds the table.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

const char* distill_inplace(Context& ctx, const KernelArgs& k);  // loss_distill.cu

}  // namespace llm::cuda
