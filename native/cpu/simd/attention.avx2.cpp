#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd256.inc"
#include "cpu/simd/vec256.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/attention.inc"
#include "cpu/simd/attention_bwd.inc"

}  // namespace

const KernelEntry avx2_attention[] = {LLM_ATTENTION_KERNELS};
const int avx2_attention_count = sizeof(avx2_attention) / sizeof(avx2_attention[0]);

}  // namespace llm
