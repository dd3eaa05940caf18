#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd512.inc"
#include "cpu/simd/vec512.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/layers.inc"

}  // namespace

const KernelEntry avx512_layers[] = {LLM_LAYERS_KERNELS};
const int avx512_layers_count = sizeof(avx512_layers) / sizeof(avx512_layers[0]);

}  // namespace llm
