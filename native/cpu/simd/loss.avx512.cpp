#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd512.inc"
#include "cpu/simd/vec512.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/rows.inc"
#include "cpu/simd/loss.inc"

}  // namespace

const KernelEntry avx512_loss[] = {LLM_LOSS_KERNELS};
const int avx512_loss_count = sizeof(avx512_loss) / sizeof(avx512_loss[0]);

}  // namespace llm
