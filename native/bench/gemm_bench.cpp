// Speed of the CPU matrix kernels: GFLOP/s of dense GEMM, GB/s of weight streams. Prints one table a section.
// usage: gemm_bench [dense|stream|quant|all] [threads ...]
//
// Every figure is the best of several runs (the machine may be shared); with one thread time is that thread's processor time, so
// that being descheduled does not count. "peak" is what one core's FMA units reach in registers and
// "read" what summing a buffer reaches, both measured here and now, so that a figure can be read as a share of them.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <time.h>
#endif

#include "../core/threadpool.h"
#include "../cpu/gemm.h"
#include "../cpu/gemm_scalar.h"
#include "../cpu/isa.h"
#include "../cpu/qgemm.h"

using namespace llm::cpu;

namespace {

bool processor_time = false;

double now() {
#if defined(__linux__)
  if (processor_time) {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double best_seconds(double budget, const std::function<void(int)>& run) {
  double best = 1e30;
  const double start = now();
  for (int i = 0; i < 4 || now() - start < budget; ++i) {
    const double t = now();
    run(i);
    best = std::min(best, now() - t);
  }
  return best;
}

char* huge(size_t bytes) {
  const size_t align = size_t{2} << 20;
  bytes = (bytes + align - 1) / align * align;
  auto* p = static_cast<char*>(std::aligned_alloc(align, bytes));
  if (p == nullptr) std::abort();
#if defined(MADV_HUGEPAGE)
  madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

void fill(char* p, size_t bytes, Dt type) {
  uint32_t s = 1;
  for (int64_t i = 0; i < static_cast<int64_t>(bytes) / element_bytes(type); ++i) {
    s = s * 1664525u + 1013904223u;
    store_element(type, p, i, static_cast<float>(static_cast<int32_t>(s)) * 0x1p-31f);
  }
}

#if defined(__x86_64__)
// Sums 64-byte lines with the widest loads there are: what a perfect kernel that only reads would reach.
__attribute__((target("avx512f"))) uint64_t read_lines(const char* p, size_t bytes) {
  __m512i s[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (size_t at = 0; at < bytes; at += 256) {
    s[0] = _mm512_xor_si512(s[0], _mm512_loadu_si512(p + at));
    s[1] = _mm512_xor_si512(s[1], _mm512_loadu_si512(p + at + 64));
    s[2] = _mm512_xor_si512(s[2], _mm512_loadu_si512(p + at + 128));
    s[3] = _mm512_xor_si512(s[3], _mm512_loadu_si512(p + at + 192));
  }
  uint64_t out[8];
  _mm512_storeu_si512(out, _mm512_xor_si512(_mm512_xor_si512(s[0], s[1]), _mm512_xor_si512(s[2], s[3])));
  return out[0] ^ out[1] ^ out[2] ^ out[3] ^ out[4] ^ out[5] ^ out[6] ^ out[7];
}

__attribute__((target("avx512f"))) void fma_loop(int64_t n) {
  __asm__ volatile(
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,30,31\nvpxord %%zmm\\i,%%zmm\\i,%%zmm\\i\n.endr\n"  // subnormals would be slow
      "1:\n.irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nvfmadd231ps %%zmm30,%%zmm31,%%zmm\\i\n.endr\ndec %0\njnz 1b\n"
      : "+r"(n)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
#endif

void print_machine(int threads, const char* weights, size_t bytes) {
  double peak = 0;
#if defined(__x86_64__)
  if (detected_isa() >= Isa::avx512) {
    const int64_t n = 200000;
    peak = 512.0 * static_cast<double>(n) * threads /
           best_seconds(0.3, [&](int) { parallel_for(threads, 1, [&](int64_t, int64_t) { fma_loop(n); }); }) / 1e9;
  }
#endif
  const size_t piece = size_t{1} << 20;
  std::vector<uint64_t> sums(bytes / piece);
  const double seconds = best_seconds(0.5, [&](int) {
    parallel_for(static_cast<int64_t>(bytes / piece), 1, [&](int64_t i, int64_t) {
      const char* p = weights + static_cast<size_t>(i) * piece;
#if defined(__x86_64__)
      if (detected_isa() >= Isa::avx512) {
        sums[static_cast<size_t>(i)] = read_lines(p, piece);
        return;
      }
#endif
      uint64_t sum = 0, v = 0;
      for (size_t at = 0; at < piece; at += 8) std::memcpy(&v, p + at, 8), sum ^= v;
      sums[static_cast<size_t>(i)] = sum;
    });
  });
  std::printf("\n%d thread%s: f32 FMA peak %.0f GFLOP/s, read %.1f GB/s over %zu MiB\n", threads, threads > 1 ? "s" : "", peak,
              static_cast<double>(bytes) / seconds / 1e9, bytes >> 20);
}

struct Variant {
  const char* label;
  Isa isa;
  Dt type;
  bool pairs;
};

const Variant kVariants[] = {{"avx2 f32", Isa::avx2, Dt::f32, false},         {"avx512 f32", Isa::avx512, Dt::f32, false},
                             {"avx2 bf16", Isa::avx2, Dt::bf16, false},       {"avx512 bf16 widened", Isa::avx512, Dt::bf16, false},
                             {"avx512 bf16 dot", Isa::avx512bf16, Dt::bf16, true}, {"avx512 f16", Isa::avx512, Dt::f16, false}};

double run_gemm(const Variant& v, int64_t m, int64_t n, int64_t k, bool ta, bool tb, char* a, char* b, size_t b_bytes, char* c, double budget) {
  const int64_t matrix = n * k * element_bytes(v.type);
  const int64_t copies = std::max<int64_t>(1, std::min<int64_t>(m > 64 ? 1 : 64, static_cast<int64_t>(b_bytes) / matrix));
  return best_seconds(budget, [&](int i) {
    GemmArgs g;
    g.m = m, g.n = n, g.k = k;
    g.a = a, g.lda = ta ? m : k, g.trans_a = ta;
    g.b = b + i % copies * matrix, g.ldb = tb ? k : n, g.trans_b = tb;
    g.c = c, g.ldc = n, g.a_type = g.b_type = v.type, g.c_type = ta ? Dt::f32 : v.type;
    g.beta = ta ? 1.0f : 0.0f;
    gemm(g);
  });
}

void dense(char* a, char* b, size_t b_bytes, char* c) {
  struct Shape {
    int64_t m, n, k;
    bool ta, tb;
    const char* label;
  };
  const Shape shapes[] = {{1024, 1024, 1024, false, true, "1024^3 NT"}, {1024, 1024, 1024, false, false, "1024^3 NN"},
                          {1024, 1024, 1024, true, false, "1024^3 TN"}, {128, 4096, 4096, false, true, "128x4k x4k NT"},
                          {32, 4096, 4096, false, true, "32x4k x4k NT"}, {1024, 16, 4096, false, true, "LoRA A r16"},
                          {1024, 4096, 16, false, true, "LoRA B r16"}, {4096, 16, 1024, true, false, "LoRA dB r16"}};
  std::printf("%-22s", "dense, GFLOP/s");
  for (const auto& s : shapes) std::printf(" %14s", s.label);
  std::printf("\n");
  for (const Variant& v : kVariants) {
    if (!set_active_isa(v.isa)) continue;
    set_bf16_dot(v.pairs);
    fill(a, size_t{4096} * 4096 * 4, v.type), fill(b, size_t{4096} * 4096 * 4, v.type), std::memset(c, 0, size_t{16} << 20);
    std::printf("%-22s", v.label);
    for (const auto& s : shapes) {
      const double t = run_gemm(v, s.m, s.n, s.k, s.ta, s.tb, a, b, b_bytes, c, 0.4);
      std::printf(" %14.0f", 2e-9 * static_cast<double>(s.m * s.n * s.k) / t);
      std::fflush(stdout);
    }
    std::printf("\n");
  }
}

void stream(char* a, char* b, size_t b_bytes, char* c) {
  const int64_t n = 4096, k = 4096;
  const int64_t rows[] = {1, 2, 4, 8, 16};
  std::printf("%-22s", "x[m,4096] * W^T, GB/s");
  for (const auto m : rows) std::printf("      m=%-2ld", static_cast<long>(m));
  std::printf("  m=1 (W [k,n])\n");
  for (const Variant& v : kVariants) {
    if (v.pairs || !set_active_isa(v.isa)) continue;
    fill(a, size_t{16} * 4096 * 4, v.type), fill(b, b_bytes, v.type);
    std::printf("%-22s", v.label);
    const double bytes = 1e-9 * static_cast<double>(n * k * element_bytes(v.type));
    for (const auto m : rows) std::printf(" %9.1f", bytes / run_gemm(v, m, n, k, false, true, a, b, b_bytes, c, 0.5)), std::fflush(stdout);
    std::printf(" %9.1f\n", bytes / run_gemm(v, 1, n, k, false, false, a, b, b_bytes, c, 0.5));
  }
}

void quant(char* b, size_t b_bytes) {
  const int64_t n = 4096, k = 4096;
  struct Form {
    const char* label;
    QWeight w;
  };
  const Form forms[] = {{"W4 g32 sym f16", {n, k, 32, 4, Dt::f16, false}},
                        {"W4 g128 asym f16", {n, k, 128, 4, Dt::f16, true}},
                        {"W8 g128 f16", {n, k, 128, 8, Dt::f16, false}}};
  const int64_t rows[] = {1, 2, 4, 8, 16, 64, 512};
  std::vector<float> x(512 * 4096, 0.5f), y(512 * 4096);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) - 8.0f;
  const char* labels[] = {"avx2", "avx512"};
  for (int isa = 0; isa < 2; ++isa) {
    if (!set_active_isa(isa == 0 ? Isa::avx2 : Isa::avx512)) continue;
    for (const Form& f : forms) {
      const size_t bytes = (packed_bytes(f.w) + 63) / 64 * 64;
      const int copies = static_cast<int>(b_bytes / bytes);
      std::vector<uint8_t> q(static_cast<size_t>(n * k), 0x5a), zeros(static_cast<size_t>(n * k / f.w.group), 7);
      std::vector<uint16_t> scales(static_cast<size_t>(n * k / f.w.group), f32_to_f16(0.01f));
      if (f.w.bits == 4) repack_w4(f.w, q.data(), scales.data(), f.w.has_zeros ? zeros.data() : nullptr, b);
      else repack_q8(f.w, reinterpret_cast<const int8_t*>(q.data()), scales.data(), b);
      for (int i = 1; i < copies; ++i) std::memcpy(b + static_cast<size_t>(i) * bytes, b, bytes);
      for (const QMode mode : {QMode::exact, QMode::int8}) {
        char label[64];
        std::snprintf(label, sizeof label, "%s %s %s", labels[isa], f.label, mode == QMode::exact ? "exact" : "int8");
        std::printf("%-34s", label);
        for (const auto m : rows) {
          for (const bool hot : {true, false}) {
            if (hot && m > 1) continue;
            const int used = hot || m > 16 ? 1 : copies;
            const double t = best_seconds(0.5, [&](int i) {
              QGemmArgs g;
              g.m = m, g.x = x.data(), g.ldx = k, g.packed = b + static_cast<size_t>(i % used) * bytes, g.y = y.data(), g.ldy = n, g.mode = mode;
              (f.w.bits == 4 ? gemm_w4 : gemm_q8)(f.w, g);
            });
            if (hot) std::printf(" hot m=1 %.3f ms,", t * 1e3);
            if (m == 1 && !hot) std::printf(" m=1 over %d: %.3f ms = %.1f GB/s |", used, t * 1e3, static_cast<double>(bytes) / t / 1e9);
            if (m > 1 && m <= 16) std::printf(" m=%ld %.3f ms", static_cast<long>(m), t * 1e3);
            if (m > 16) std::printf(" m=%ld %.0f GFLOP/s", static_cast<long>(m), 2e-9 * static_cast<double>(m * n * k) / t);
            std::fflush(stdout);
          }
        }
        std::printf("\n");
      }
    }
  }
}

void dispatch() {
  auto empty = [](int64_t, int64_t) {};
  const double hot = best_seconds(0.2, [&](int) {
    for (int i = 0; i < 1000; ++i) parallel_for(thread_count(), 1, empty);
  });
  std::printf("parallel_for of %d empty chunks: %.2f us hot\n", thread_count(), hot * 1e3);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  std::vector<int> threads;
  for (int i = 2; i < argc; ++i) threads.push_back(std::atoi(argv[i]));
  if (threads.empty()) {
    threads.push_back(1);
    if (thread_count() > 1) threads.push_back(thread_count());
  }
  std::printf("%s, %s, %s\n", cpu_model_name(), isa_name(detected_isa()), bf16_dot_is_fast() ? "bf16 dot in use" : "bf16 dot not in use");
  const size_t b_bytes = size_t{320} << 20;
  char *a = huge(size_t{64} << 20), *b = huge(b_bytes), *c = huge(size_t{64} << 20);
  std::memset(a, 0, size_t{64} << 20), std::memset(b, 1, b_bytes), std::memset(c, 0, size_t{64} << 20);
  for (const int t : threads) {
    set_thread_count(t);
    processor_time = t == 1;
    print_machine(t, b, b_bytes);
    dispatch();
    if (what == "dense" || what == "all") dense(a, b, b_bytes, c);
    if (what == "stream" || what == "all") stream(a, b, b_bytes, c);
    if (what == "quant" || what == "all") quant(b, b_bytes);
  }
  return 0;
}
