// The machine instructions that the kernels use, one small function each: asynchronous copies, matrix fragments, tensor core products,
// barriers in shared memory (all from sm_80 on). Shared-memory addresses are 32-bit (shared_address). Everything from "Hopper" on exists on
// sm_90a alone: call it only inside `#if LLM_HOPPER`.
#pragma once
#include <cuda.h>

#include <type_traits>

#include "cuda/kernel.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LLM_HOPPER 1
#else
#define LLM_HOPPER 0
#endif

namespace llm::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes that are read once: not kept in the L1 cache.
__device__ __forceinline__ uint4 stream16(const void* p) {
  uint4 r;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}

// 2^x and log2 x: the units' own instructions, about 2 ulp; denormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two f32 rounded into one register, `low` in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ __forceinline__ uint32_t pack2<f16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// ---- Asynchronous copies of 16 bytes (sm_80): read bytes from global memory, fill the rest with zeros ----
__device__ __forceinline__ void cp_async16(uint32_t to, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>  // until at most N groups are under way
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- Matrix fragments of 8x8 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 ----
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4_trans(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}
__device__ __forceinline__ void ldmatrix2(uint32_t (&r)[2], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(from) : "memory");
}
__device__ __forceinline__ void ldmatrix2_trans(uint32_t (&r)[2], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(from) : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8]; a by rows, b by columns, f32 sums. Lane l holds d[l/4][2(l%4)+{0,1}] and the same 8 rows below.
template <class T>
__device__ __forceinline__ void mma16816(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// A barrier among `threads` threads of the block; ids 1..15 (0 is __syncthreads). arrive does not wait.
__device__ __forceinline__ void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ================================ Hopper ================================

// ---- mbarrier: 8 bytes of shared memory that count arrivals and bytes. A wait on parity p returns once the phase of that parity is over;
// a fresh barrier is in phase 0, so waiting on parity 1 returns at once. ----
__device__ __forceinline__ void mbar_init(uint32_t bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
// After the inits, before the block's barrier: makes them visible to the copy engine.
__device__ __forceinline__ void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void mbar_expect(uint32_t bar, uint32_t bytes) {  // one arrival, and `bytes` more to come
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbar_arrive(uint32_t bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
__device__ __forceinline__ bool mbar_try_wait(uint32_t bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity) {
  while (!mbar_try_wait(bar, parity)) {
  }
}

// ---- The copy engine. Coordinates count elements, innermost dim first; rows outside the tensor read as zeros and are not written. ----
__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void tma_load_2d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map),
               "r"(bar), "r"(c0), "r"(c1)
               : "memory");
}
__device__ __forceinline__ void tma_load_3d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
               "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}
__device__ __forceinline__ void tma_load_4d(uint32_t to, const CUtensorMap* map, uint32_t bar, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
               "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}
// Plain bytes (a multiple of 16, both ends 16-byte aligned), no tensor map.
__device__ __forceinline__ void bulk_load(uint32_t to, const void* from, uint32_t bytes, uint32_t bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(bar)
               : "memory");
}
__device__ __forceinline__ void tma_store_3d(const CUtensorMap* map, uint32_t from, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(from), "r"(c0), "r"(c1),
               "r"(c2)
               : "memory");
}
__device__ __forceinline__ void tma_store_4d(const CUtensorMap* map, uint32_t from, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map), "r"(from), "r"(c0), "r"(c1),
               "r"(c2), "r"(c3)
               : "memory");
}
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N>  // until the sources of all but N groups may be overwritten
__device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// Between ordinary stores to shared memory and the copy engine or the tensor cores reading them (then a barrier).
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four 8x8 matrices of 16-bit elements from registers to shared memory, addresses as in ldmatrix4.
__device__ __forceinline__ void stmatrix4(uint32_t to, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void stmatrix4_trans(uint32_t to, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// ---- Registers move between warpgroups: N per thread, a multiple of 8; every warp of the warpgroup calls it ----
template <int N>
__device__ __forceinline__ void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- wgmma: d[64, N] (+)= a[64, 16] b[16, N], by the 128 threads of a warpgroup, asynchronous ----
// Order of use: wgmma_fence(), products, wgmma_commit(), …, wgmma_wait<groups left>(). Between a product and its wait nobody touches its
// registers (d, and a of `rs`); hold() after the wait keeps the compiler from moving reads of d above it.
// Thread t (warp w = t / 32 of the group, l = t % 32) holds row 16 w + l / 4 (+ 8), column 8 j + 2 (l % 4) (+ 1):
//   d[4 j], d[4 j + 1] in the upper row, d[4 j + 2], d[4 j + 3] in the lower.
// Register operand a: a[0] = upper row, columns 2 (l % 4) + {0, 1}; a[1] = lower row, the same; a[2], a[3] = the same 8 columns on. So the
// sums of one product, rounded in pairs, are the `a` of the next: columns 16 i of d give a = {d[8i..8i+1], d[8i+2..+3], d[8i+4..+5], d[8i+6..+7]}.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
__device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ __forceinline__ void hold(uint32_t (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}

// What wgmma is told about an operand in shared memory. All tiles here are swizzled by 128 bytes, as a tensor map with box width 64 (16-bit
// elements) and CU_TENSOR_MAP_SWIZZLE_128B writes them: rows of 64 elements = 128 bytes, the 16-byte piece c of row r at piece c ^ (r % 8);
// the tile starts at a multiple of 1024. A wider matrix is several such tiles side by side ("panels"), each rows * 128 bytes.
//   by rows (K-major, trans = 0): the product's K runs along the 64 elements. One step of K = 16 is 32 bytes on: add 2 to the
//     descriptor; the next 64 of K are the next panel: add rows * 8. 8-row groups are 1024 bytes apart; M or N row r starts at r * 128.
//   by columns (MN-major, trans = 1): the product's M or N runs along the 64 elements, K down the rows. One step of K = 16 is 16 rows on:
//     add 128; the panels hold M or N in pieces of 64, `panel_bytes` apart.
__device__ __forceinline__ uint64_t descriptor_rows(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}
__device__ __forceinline__ uint64_t descriptor_columns(uint32_t address, uint32_t panel_bytes) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | (static_cast<uint64_t>(panel_bytes >> 4) << 16) | (64ull << 32) | (1ull << 62);
}
// Byte offset of element (row, column < 64) in a tile swizzled so, for ordinary loads and stores and for (st|ld)matrix addresses.
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t column) {
  return row * 128 + ((((column >> 3) ^ (row & 7)) << 4) | ((column & 7) << 1));
}

template <class T, int N>
struct Wgmma;  // ss: both operands in shared memory; rs: a in registers. accumulate = 0: d = a b.

// Operand lists of the instructions below.
#define LLM_WG_TEXT_8 \
  "%0, %1, %2, %3, %4, %5, %6, %7"
#define LLM_WG_REGS_8 \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define LLM_WG_TEXT_16 \
  LLM_WG_TEXT_8 ", " "%8, %9, %10, %11, %12, %13, %14, %15"
#define LLM_WG_REGS_16 \
  LLM_WG_REGS_8, \
  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define LLM_WG_TEXT_32 \
  LLM_WG_TEXT_16 ", " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LLM_WG_REGS_32 \
  LLM_WG_REGS_16, \
  "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), \
  "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define LLM_WG_TEXT_40 \
  LLM_WG_TEXT_32 ", " "%32, %33, %34, %35, %36, %37, %38, %39"
#define LLM_WG_REGS_40 \
  LLM_WG_REGS_32, \
  "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define LLM_WG_TEXT_48 \
  LLM_WG_TEXT_40 ", " "%40, %41, %42, %43, %44, %45, %46, %47"
#define LLM_WG_REGS_48 \
  LLM_WG_REGS_40, \
  "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define LLM_WG_TEXT_64 \
  LLM_WG_TEXT_48 ", " "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LLM_WG_REGS_64 \
  LLM_WG_REGS_48, \
  "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), \
  "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define LLM_WG_TEXT_80 \
  LLM_WG_TEXT_64 ", " "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define LLM_WG_REGS_80 \
  LLM_WG_REGS_64, \
  "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), \
  "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define LLM_WG_TEXT_88 \
  LLM_WG_TEXT_80 ", " "%80, %81, %82, %83, %84, %85, %86, %87"
#define LLM_WG_REGS_88 \
  LLM_WG_REGS_80, \
  "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define LLM_WG_TEXT_96 \
  LLM_WG_TEXT_88 ", " "%88, %89, %90, %91, %92, %93, %94, %95"
#define LLM_WG_REGS_96 \
  LLM_WG_REGS_88, \
  "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define LLM_WG_TEXT_128 \
  LLM_WG_TEXT_96 ", " "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, " \
  "%116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define LLM_WG_REGS_128 \
  LLM_WG_REGS_96, \
  "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), \
  "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), \
  "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), \
  "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

// r = N / 2 sums a thread; p0… are r, r + 1, … as text, since asm operands are counted.
#define LLM_WGMMA(T, type, N, r, p0, p1, p2, p3, p4, p5, p6)                                                                          \
  template <>                                                                                                                          \
  struct Wgmma<T, N> {                                                                                                                 \
    template <int trans_a, int trans_b>                                                                                                \
    static __device__ __forceinline__ void ss(float (&d)[r], uint64_t a, uint64_t b, int accumulate) {                                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" \
                   LLM_WG_TEXT_##r "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 ";\n}"                                            \
                   : LLM_WG_REGS_##r                                                                                                   \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(trans_a), "n"(trans_b));                                                     \
    }                                                                                                                                  \
    template <int trans_b>                                                                                                             \
    static __device__ __forceinline__ void rs(float (&d)[r], const uint32_t (&a)[4], uint64_t b, int accumulate) {                     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" \
                   LLM_WG_TEXT_##r "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4 ", p, 1, 1, %" #p6 ";\n}"                      \
                   : LLM_WG_REGS_##r                                                                                                   \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(trans_b));                               \
    }                                                                                                                                  \
  };
LLM_WGMMA(bf16, "bf16", 16, 8, 8, 9, 10, 11, 12, 13, 14)
LLM_WGMMA(f16, "f16", 16, 8, 8, 9, 10, 11, 12, 13, 14)
LLM_WGMMA(bf16, "bf16", 32, 16, 16, 17, 18, 19, 20, 21, 22)
LLM_WGMMA(f16, "f16", 32, 16, 16, 17, 18, 19, 20, 21, 22)
LLM_WGMMA(bf16, "bf16", 64, 32, 32, 33, 34, 35, 36, 37, 38)
LLM_WGMMA(f16, "f16", 64, 32, 32, 33, 34, 35, 36, 37, 38)
LLM_WGMMA(bf16, "bf16", 80, 40, 40, 41, 42, 43, 44, 45, 46)
LLM_WGMMA(f16, "f16", 80, 40, 40, 41, 42, 43, 44, 45, 46)
LLM_WGMMA(bf16, "bf16", 96, 48, 48, 49, 50, 51, 52, 53, 54)
LLM_WGMMA(f16, "f16", 96, 48, 48, 49, 50, 51, 52, 53, 54)
LLM_WGMMA(bf16, "bf16", 128, 64, 64, 65, 66, 67, 68, 69, 70)
LLM_WGMMA(f16, "f16", 128, 64, 64, 65, 66, 67, 68, 69, 70)
LLM_WGMMA(bf16, "bf16", 160, 80, 80, 81, 82, 83, 84, 85, 86)
LLM_WGMMA(f16, "f16", 160, 80, 80, 81, 82, 83, 84, 85, 86)
LLM_WGMMA(bf16, "bf16", 176, 88, 88, 89, 90, 91, 92, 93, 94)
LLM_WGMMA(f16, "f16", 176, 88, 88, 89, 90, 91, 92, 93, 94)
LLM_WGMMA(bf16, "bf16", 192, 96, 96, 97, 98, 99, 100, 101, 102)
LLM_WGMMA(f16, "f16", 192, 96, 96, 97, 98, 99, 100, 101, 102)
LLM_WGMMA(bf16, "bf16", 256, 128, 128, 129, 130, 131, 132, 133, 134)
LLM_WGMMA(f16, "f16", 256, 128, 128, 129, 130, 131, 132, 133, 134)
#undef LLM_WGMMA

}  // namespace llm::cuda::ptx
