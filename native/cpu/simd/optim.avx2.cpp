#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd256.inc"
#include "cpu/simd/vec256.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/optim.inc"

}  // namespace

const KernelEntry avx2_optim[] = {LLM_OPTIM_KERNELS};
const int avx2_optim_count = sizeof(avx2_optim) / sizeof(avx2_optim[0]);

}  // namespace llm
