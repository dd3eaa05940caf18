// Which kernel an op runs on this CPU.
#pragma once
#include "core/op.h"

namespace llm {

Kernel cpu_kernel(int op);
const char* cpu_kernel_variant(int op);  // "scalar" | "avx2" | "avx512" | "avx512bf16" | "amx"

}  // namespace llm
