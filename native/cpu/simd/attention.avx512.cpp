#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd512.inc"
#include "cpu/simd/vec512.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/attention.inc"
#include "cpu/simd/attention_bwd.inc"

}  // namespace

const KernelEntry avx512_attention[] = {LLM_ATTENTION_KERNELS};
const int avx512_attention_count = sizeof(avx512_attention) / sizeof(avx512_attention[0]);

}  // namespace llm
