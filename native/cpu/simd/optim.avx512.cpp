#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd512.inc"
#include "cpu/simd/vec512.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/optim.inc"

}  // namespace

const KernelEntry avx512_optim[] = {LLM_OPTIM_KERNELS};
const int avx512_optim_count = sizeof(avx512_optim) / sizeof(avx512_optim[0]);

}  // namespace llm
