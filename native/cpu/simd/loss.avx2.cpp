#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd256.inc"
#include "cpu/simd/vec256.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/rows.inc"
#include "cpu/simd/loss.inc"

}  // namespace

const KernelEntry avx2_loss[] = {LLM_LOSS_KERNELS};
const int avx2_loss_count = sizeof(avx2_loss) / sizeof(avx2_loss[0]);

}  // namespace llm
