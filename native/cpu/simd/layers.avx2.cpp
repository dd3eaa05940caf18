#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd256.inc"
#include "cpu/simd/vec256.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/layers.inc"

}  // namespace

const KernelEntry avx2_layers[] = {LLM_LAYERS_KERNELS};
const int avx2_layers_count = sizeof(avx2_layers) / sizeof(avx2_layers[0]);

}  // namespace llm
