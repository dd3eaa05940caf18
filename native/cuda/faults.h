#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

// What a fault of an op says to the user; the same words as the CPU's kernels.
const char* fault_text(int op, Fault f);

}  // namespace llm::cuda
