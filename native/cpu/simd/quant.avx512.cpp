#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd512.inc"
#include "cpu/simd/vec512.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/quant.inc"

}  // namespace

const KernelEntry avx512_quant[] = {LLM_QUANT_KERNELS};
const int avx512_quant_count = sizeof(avx512_quant) / sizeof(avx512_quant[0]);

}  // namespace llm
