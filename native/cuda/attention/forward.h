// The three ways to compute attention's forward pass; forward.cu chooses. All compute, for every query row t of a sequence and head h,
// o = sum p v / sum p with p = exp(scale q.k - max) over the keys that t sees, and lse = max + log sum p (no keys: 0 and -inf).
#pragma once
#include "cuda/attention/packed.cuh"

namespace llm::cuda {

struct Forward {
  View q, k, v;  // [T, heads, D], any row stride
  char* o;       // [Tq, H, D], dense
  float* lse;    // [H, Tq]
  Packed packed;
  int heads, group;  // query heads; query heads per key head
  int together;      // query heads whose keys and values fit the L2 cache together
  double scale;
};

Forward forward_of(const Context& ctx, const KernelArgs& k);

// Any dtype, any width, f32 arithmetic.
const char* forward_generic(Context& ctx, const Forward& f);
// bf16 and f16 on tensor cores by mma.sync. False (nothing launched) when the shape does not fit.
bool forward_mma_fits(const Forward& f);
const char* forward_mma(Context& ctx, const Forward& f);
// bf16 and f16, D = 64 or 128, on Hopper: wgmma, copy engine. `fits` false: take another way.
bool forward_hopper_fits(const Context& ctx, const Forward& f);
const char* forward_hopper(Context& ctx, const Forward& f);

}  // namespace llm::cuda
