// Which instruction sets the CPU kernels may use, found at run time.
#pragma once

namespace llm::cpu {

/// Kernel variants, from least to most. Each includes those before it.
enum class Isa : int {
  scalar,      ///< portable C++, accumulates in double: the reference
  avx2,        ///< AVX2 + FMA + F16C
  avx512,      ///< AVX-512 F/BW/VL/DQ + VNNI
  avx512bf16,  ///< AVX-512 BF16 in addition
  amx,         ///< AMX tiles with bf16 products in addition
};

constexpr int kIsaCount = 5;

/// The most this machine (CPU and operating system) and this build can run. Asks the system for the tile registers where there are any.
Isa detected_isa();

/// What kernels use: the smaller of detected_isa() and LLM_CPU_ISA (scalar | avx2 | avx512 |
/// avx512bf16 | amx).
Isa active_isa();

/// Null, or why LLM_CPU_ISA was not accepted: unknown name, or more than the machine has. active_isa() is detected_isa() then;
/// the caller should raise the message.
const char* isa_error();

/// For tests and benches: overrides active_isa(). False (and no change) when the machine cannot run it.
bool set_active_isa(Isa isa);

/// "scalar", "avx2", "avx512", "avx512bf16" or "amx".
const char* isa_name(Isa isa);

/// The processor's own name, or "unknown".
const char* cpu_model_name();

/// True where the bf16 dot instruction outruns f32 FMA (AMD Zen 4 and later: 2x). Intel cores issue it at half the rate of
/// FMA, so bf16 GEMM converts to f32 while packing there.
bool bf16_dot_is_fast();

/// For tests and benches: overrides bf16_dot_is_fast().
void set_bf16_dot(bool use);

}  // namespace llm::cpu
