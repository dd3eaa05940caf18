#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd256.inc"
#include "cpu/simd/vec256.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/quant.inc"

}  // namespace

const KernelEntry avx2_quant[] = {LLM_QUANT_KERNELS};
const int avx2_quant_count = sizeof(avx2_quant) / sizeof(avx2_quant[0]);

}  // namespace llm
