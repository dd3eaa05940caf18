// Headers of the vector kernels. Only plain declarations: these files are compiled for newer machines than the rest, so nothing
// they include may leave behind a shared inline function.
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms inside GCC's own intrinsics headers (bug 105593)
#endif
#include <immintrin.h>

#include "core/half.h"
#include "core/threadpool.h"
#include "cpu/gemm.h"
#include "cpu/gemm_workspace.h"
#include "cpu/kernels.h"
#include "cpu/nf4.h"
#include "gen/ops.h"

namespace llm {
using cpu::Dt;
}
