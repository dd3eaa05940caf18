#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd512.inc"
#include "cpu/simd/vec512.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/rows.inc"
#include "cpu/simd/elementwise.inc"

}  // namespace

const KernelEntry avx512_elementwise[] = {LLM_ELEMENTWISE_KERNELS};
const int avx512_elementwise_count = sizeof(avx512_elementwise) / sizeof(avx512_elementwise[0]);

}  // namespace llm
