#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd256.inc"
#include "cpu/simd/vec256.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/rows.inc"
#include "cpu/simd/elementwise.inc"

}  // namespace

const KernelEntry avx2_elementwise[] = {LLM_ELEMENTWISE_KERNELS};
const int avx2_elementwise_count = sizeof(avx2_elementwise) / sizeof(avx2_elementwise[0]);

}  // namespace llm
