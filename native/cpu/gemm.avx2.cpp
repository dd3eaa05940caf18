#if defined(__GNUC__) && !defined(__clang__)  // GCC 12: false positives inside the intrinsics' own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "gemm_kernels.h"

namespace llm::cpu {
namespace {

#include "gemm_simd256.inc"
#define GEMM_MAX_ROWS 6
#define GEMM_DOT_ROWS 4
#define GEMM_DOT_DEPTH 512
constexpr int kDotCols[] = {6, 4, 3, 3};
#include "gemm_tile.inc"

}  // namespace

void register_gemm_avx2(GemmKernels* t) {
  t->lanes = kLanes;
  t->f32.mr = GEMM_MAX_ROWS;
  t->f32.nr = kNr;
  t->f32.depth = 256;  // an A panel stays in L1
  t->f32.pack_a = t->f32.pack_b = pack;
  t->f32.micro = micro;
  t->epilogue = epilogue;
  t->widen = widen;
  t->dot = dot;
  t->axpy = axpy;
}

}  // namespace llm::cpu
