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
  t->mr = GEMM_MAX_ROWS;
  t->nr = kNr;
  t->lanes = kLanes;
  t->pack = pack;
  t->micro = micro;
  t->pack_pair = nullptr;
  t->micro_pair = nullptr;
  t->epilogue = epilogue;
  t->widen = widen;
  t->dot = dot;
  t->axpy = axpy;
}

}  // namespace llm::cpu
