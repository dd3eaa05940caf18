#include "cpu/scan.h"
#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd512.inc"
#include "cpu/simd/vec512.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/rows.inc"
#include "cpu/simd/scan.inc"

}  // namespace

const LogitScan avx512_scan = {scan_widen, scan_top, scan_mass, scan_collect};

}  // namespace llm
