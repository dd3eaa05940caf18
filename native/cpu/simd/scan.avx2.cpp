#include "cpu/scan.h"
#include "cpu/simd/begin.h"

namespace llm {
namespace {

#include "cpu/gemm_simd256.inc"
#include "cpu/simd/vec256.inc"
#include "cpu/simd/common.inc"
#include "cpu/simd/rows.inc"
#include "cpu/simd/scan.inc"

}  // namespace

const LogitScan avx2_scan = {scan_widen, scan_top, scan_mass, scan_collect};

}  // namespace llm
