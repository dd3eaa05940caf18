// Instructions of the attention gradient beyond those in ptx.cuh.
#pragma once
#include "cuda/ptx.cuh"

namespace llm::cuda::ptx {

// 8 bytes, asynchronously; reads `bytes` of them, the rest become zeros.
__device__ __forceinline__ void cp_async8(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ float4 load_shared4(uint32_t from) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(from) : "memory");
  return x;
}

__device__ __forceinline__ void store_shared_zeros(uint32_t to) {  // 16 bytes
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
}

// One of the arrivals that the barrier was made for, once this thread's copies so far have landed.
__device__ __forceinline__ void cp_async_arrive(uint32_t bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

// An operand by columns without a swizzle: blocks of 8 (along K) rows x 8 (along M or N) elements, 128 contiguous bytes each; the next
// block along M or N is `next` bytes away, along K `next_k`.
__device__ __forceinline__ uint64_t descriptor_blocks(uint32_t address, uint32_t next, uint32_t next_k) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | (static_cast<uint64_t>(next_k >> 4) << 16) | (static_cast<uint64_t>(next >> 4) << 32);
}

}  // namespace llm::cuda::ptx
