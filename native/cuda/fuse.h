// Neighbours of a Plan that one kernel can do the work of: see fuse.cu and docs/decisions/0009.
#pragma once
#include "core/plugin.h"
#include "cuda/kernel.cuh"

namespace llm::cuda {

// Runs the first few of `n` commands by one kernel if they begin a known pattern, and says in `taken` how many; 0: they do not, and nothing
// was launched. Their outputs get the bits that they get one by one.
const char* run_fused(Context& ctx, const PluginCommand* commands, int n, int* taken);

}  // namespace llm::cuda
