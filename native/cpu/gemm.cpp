// Blocking, packing order and threading of GEMM. Every block size here depends on the shape alone.
#include "gemm.h"

#include <algorithm>
#include <cstring>

#include "../core/threadpool.h"
#include "gemm_kernels.h"
#include "gemm_scalar.h"
#include "gemm_workspace.h"
#include "isa.h"

namespace llm::cpu {
namespace {

constexpr int64_t kDepth = 256;            // k of a block, in 32-bit elements (an A panel of 14 rows stays in L1)
constexpr int64_t kBlockColumns = 256;     // columns of a task (its B block of kDepth rows stays in L2)
constexpr int64_t kBlockRows = 512;        // most rows of a task: B is packed again for each block of rows
constexpr int64_t kSharedBytes = 64 << 20; // most bytes of A packed at once
constexpr int kStreamRows = 8;             // up to so many rows B is streamed instead of packed
constexpr int kDotRows = 16;               // the same when B is stored [n, k] (a linear layer)

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* at(const void* p, Dt type, int64_t index) { return static_cast<const char*>(p) + index * element_bytes(type); }

const float* widen_bias(const GemmArgs& g, const GemmKernels& kernels) {
  if (g.bias == nullptr) return nullptr;
  if (g.bias_type == Dt::f32) return static_cast<const float*>(g.bias);
  auto* out = static_cast<float*>(scratch(Scratch::bias, static_cast<size_t>(g.n) * 4));
  kernels.widen(g.bias_type, g.bias, g.n, out);
  return out;
}

// ---- few rows --------------------------------------------------------------------------------------------------------------

// One side has at most kStreamRows vectors of length k ("few"), the other is streamed. C(few, many) or, swapped, C(many, few).
struct Stream {
  int few;
  int64_t many, k;
  const void* few_data;
  int64_t few_ld;
  bool few_k_contiguous;
  Dt few_type;
  const void* many_data;
  int64_t many_ld;
  bool many_k_contiguous;
  Dt many_type;
  bool swapped;
};

void run_stream(const GemmArgs& g, const Stream& s, const GemmKernels& kernels) {
  const float* bias = widen_bias(g, kernels);
  const int64_t ldx = ceil_div(s.k, 16) * 16 + 16;  // + 16: rows do not all fall into the same cache sets
  auto* x = static_cast<float*>(scratch(Scratch::rows, static_cast<size_t>(std::max<int64_t>(1, s.few * ldx)) * 4));
  for (int i = 0; i < s.few; ++i) {
    float* row = x + i * ldx;
    if (s.few_k_contiguous) {
      kernels.widen(s.few_type, at(s.few_data, s.few_type, i * s.few_ld), s.k, row);
    } else {
      for (int64_t k = 0; k < s.k; ++k) row[k] = load_element(s.few_type, s.few_data, k * s.few_ld + i);
    }
    std::fill(row + s.k, row + ldx, 0.0f);
  }
  // A chunk streams about 64 KiB by rows of B; by columns it is as wide as stays in L1 together with its sums.
  const int64_t row_bytes = std::max<int64_t>(1, s.k * element_bytes(s.many_type));
  const int64_t chunk = s.many_k_contiguous ? std::clamp<int64_t>((128 << 10) / row_bytes / 24 * 24, 24, 120) : (s.few > 2 ? 512 : 1024);
  parallel_for(s.many, chunk, [&](int64_t begin, int64_t end) {
    const int cols = static_cast<int>(end - begin);
    auto* out = static_cast<float*>(scratch(Scratch::tile, static_cast<size_t>(s.few * chunk) * 4));
    if (s.k == 0) {
      std::memset(out, 0, static_cast<size_t>(s.few * chunk) * 4);
    } else if (s.many_k_contiguous) {
      auto* acc = static_cast<float*>(scratch(Scratch::sums, static_cast<size_t>(s.few * cols * kernels.lanes) * 4));
      kernels.dot(s.many_type, s.few, cols, s.k, x, ldx, at(s.many_data, s.many_type, begin * s.many_ld), s.many_ld, acc, out, chunk);
    } else {
      kernels.axpy(s.many_type, s.few, cols, s.k, x, ldx, at(s.many_data, s.many_type, begin), s.many_ld, out, chunk);
    }
    if (!s.swapped) {
      kernels.epilogue(s.few, cols, out, chunk, const_cast<char*>(at(g.c, g.c_type, begin)), g.ldc, g.c_type, g.alpha, g.beta,
                       bias == nullptr ? nullptr : bias + begin);
      return;
    }
    float row[kStreamRows];
    for (int j = 0; j < cols; ++j) {
      for (int i = 0; i < s.few; ++i) row[i] = out[i * chunk + j];
      kernels.epilogue(1, s.few, row, kStreamRows, const_cast<char*>(at(g.c, g.c_type, (begin + j) * g.ldc)), g.ldc, g.c_type, g.alpha,
                       g.beta, bias);
    }
  });
}

// ---- packed ----------------------------------------------------------------------------------------------------------------

struct Plan {
  const GemmArgs& g;
  const GemmKernels& kernels;
  bool pair;          // elements are bf16 pairs
  int64_t depth;      // k of a block, in elements of k
  int64_t k_blocks;
  int64_t row0, rows; // rows of this pass
  int64_t block_rows, block_cols, row_blocks, col_blocks;
  bool shared_a;      // A packed once for all tasks
  float* packed_a;
  const float* bias;

  int64_t units(int64_t kc) const { return pair ? (kc + 1) / 2 : kc; }
  int64_t depth_of(int64_t p) const { return std::min(depth, g.k - p * depth); }

  void pack_a(int64_t row, int64_t count, int64_t k0, int64_t kc, float* dst) const {
    const void* src = at(g.a, g.a_type, g.trans_a ? k0 * g.lda + row : row * g.lda + k0);
    if (pair) kernels.pack_pair(!g.trans_a, src, g.lda, static_cast<int>(count), static_cast<int>(count), kc, dst);
    else kernels.pack(g.a_type, !g.trans_a, src, g.lda, static_cast<int>(count), static_cast<int>(count), kc, dst);
  }

  void pack_b(int64_t col, int64_t count, int width, int64_t k0, int64_t kc, float* dst) const {
    const void* src = at(g.b, g.b_type, g.trans_b ? col * g.ldb + k0 : k0 * g.ldb + col);
    if (pair) kernels.pack_pair(g.trans_b, src, g.ldb, static_cast<int>(count), width, kc, dst);
    else kernels.pack(g.b_type, g.trans_b, src, g.ldb, static_cast<int>(count), width, kc, dst);
  }
};

// Panels of a block of rows, evened out: 16 rows are 8 + 8, not 14 + 2.
struct Panels {
  int64_t rows, count;
  int64_t start(int64_t i) const { return rows * i / count; }
};

void run_task(const Plan& p, int64_t task) {
  const GemmArgs& g = p.g;
  const GemmKernels& kernels = p.kernels;
  const int64_t ib = task % p.row_blocks, jb = task / p.row_blocks;
  const int64_t i0 = ib * p.block_rows, mb = std::min(p.block_rows, p.rows - i0);
  const int64_t j0 = jb * p.block_cols, nb = std::min(p.block_cols, g.n - j0);
  const int nr = kernels.nr;
  const Panels panels{mb, ceil_div(mb, kernels.mr)};
  const int64_t b_panels = ceil_div(nb, nr);
  const int64_t most = p.units(std::min(p.depth, g.k));
  auto* b = static_cast<float*>(scratch(Scratch::panel_b, static_cast<size_t>(b_panels * nr * most) * 4));
  const int64_t tile = static_cast<int64_t>(kernels.mr) * nr;
  auto* acc = static_cast<float*>(scratch(Scratch::tile, static_cast<size_t>(p.k_blocks > 1 ? panels.count * b_panels * tile : tile) * 4));
  float* local_a = p.shared_a ? nullptr : static_cast<float*>(scratch(Scratch::panel_a, static_cast<size_t>(kernels.mr * most) * 4));
  for (int64_t kb = 0; kb < p.k_blocks; ++kb) {
    const int64_t k0 = kb * p.depth, kc = p.depth_of(kb), units = p.units(kc);
    for (int64_t j = 0; j < b_panels; ++j) {
      const int64_t cols = std::min<int64_t>(nr, nb - j * nr);
      p.pack_b(j0 + j * nr, cols, cols <= nr / 2 ? nr / 2 : nr, k0, kc, b + j * nr * units);
    }
    for (int64_t i = 0; i < panels.count; ++i) {
      const int64_t r0 = panels.start(i), rows = panels.start(i + 1) - r0;
      const float* a = local_a;
      if (p.shared_a) a = p.packed_a + p.units(k0) * p.rows + (i0 + r0) * units;
      else p.pack_a(p.row0 + i0 + r0, rows, k0, kc, local_a);
      for (int64_t j = 0; j < b_panels; ++j) {
        const int64_t cols = std::min<int64_t>(nr, nb - j * nr);
        float* out = p.k_blocks > 1 ? acc + (i * b_panels + j) * tile : acc;
        (p.pair ? kernels.micro_pair : kernels.micro)(static_cast<int>(rows), cols <= nr / 2, units, a, b + j * nr * units, out, kb == 0);
        if (kb + 1 < p.k_blocks) continue;
        void* c = const_cast<char*>(at(g.c, g.c_type, (p.row0 + i0 + r0) * g.ldc + j0 + j * nr));
        kernels.epilogue(static_cast<int>(rows), static_cast<int>(cols), out, nr, c, g.ldc, g.c_type, g.alpha, g.beta,
                         p.bias == nullptr ? nullptr : p.bias + j0 + j * nr);
      }
    }
  }
}

void run_packed(const GemmArgs& g, const GemmKernels& kernels) {
  const bool pair = kernels.micro_pair != nullptr && g.a_type == Dt::bf16 && g.b_type == Dt::bf16 && bf16_dot_is_fast();
  const int64_t depth = pair ? 2 * kDepth : kDepth;
  const int64_t row_bytes = (pair ? (g.k + 1) / 2 : g.k) * 4;
  const int64_t most_rows = std::max<int64_t>(kBlockRows, kSharedBytes / row_bytes / kBlockRows * kBlockRows);
  const float* bias = widen_bias(g, kernels);
  for (int64_t row0 = 0; row0 < g.m; row0 += most_rows) {
    Plan p{g, kernels, pair, depth, ceil_div(g.k, depth), row0, std::min(most_rows, g.m - row0), 0, 0, 0, 0, false, nullptr, bias};
    p.row_blocks = ceil_div(p.rows, kBlockRows);
    p.block_cols = kBlockColumns;
    // Enough tasks for the threads of common machines, by narrower columns first, then fewer rows.
    while (p.block_cols > kernels.nr && ceil_div(g.n, p.block_cols) * p.row_blocks < 16) p.block_cols /= 2;
    p.col_blocks = ceil_div(g.n, p.block_cols);
    if (p.col_blocks * p.row_blocks < 16) p.row_blocks = std::clamp<int64_t>(ceil_div(16, p.col_blocks), 1, ceil_div(p.rows, 4 * kernels.mr));
    p.block_rows = ceil_div(ceil_div(p.rows, p.row_blocks), kernels.mr) * kernels.mr;
    p.row_blocks = ceil_div(p.rows, p.block_rows);
    p.shared_a = p.col_blocks > 1;
    if (p.shared_a) {
      p.packed_a = static_cast<float*>(scratch(Scratch::shared_a, static_cast<size_t>(p.rows * p.units(g.k) + p.rows * p.k_blocks) * 4));
      parallel_for(p.row_blocks * p.k_blocks, 1, [&](int64_t begin, int64_t) {
        const int64_t ib = begin / p.k_blocks, kb = begin % p.k_blocks;
        const int64_t i0 = ib * p.block_rows, mb = std::min(p.block_rows, p.rows - i0), k0 = kb * p.depth, kc = p.depth_of(kb);
        const Panels panels{mb, ceil_div(mb, kernels.mr)};
        for (int64_t i = 0; i < panels.count; ++i) {
          const int64_t r0 = panels.start(i), rows = panels.start(i + 1) - r0;
          p.pack_a(row0 + i0 + r0, rows, k0, kc, p.packed_a + p.units(k0) * p.rows + (i0 + r0) * p.units(kc));
        }
      });
    }
    parallel_for(p.row_blocks * p.col_blocks, 1, [&](int64_t begin, int64_t) { run_task(p, begin); });
  }
}

struct Tables {
  GemmKernels table[4] = {};
  Tables() {
#if defined(__x86_64__)
    register_gemm_avx2(&table[1]);
    register_gemm_avx512(&table[2]);
    register_gemm_avx512(&table[3]);
    register_gemm_avx512bf16(&table[3]);
#endif
  }
};

}  // namespace

const GemmKernels* gemm_kernels() {
  static const Tables tables;
  const Isa isa = active_isa();
  return isa == Isa::scalar ? nullptr : &tables.table[static_cast<int>(isa)];
}

void gemm(const GemmArgs& g) {
  if (g.m <= 0 || g.n <= 0) return;
  const GemmKernels* kernels = gemm_kernels();
  if (kernels == nullptr) return gemm_reference(g);
  const int most_rows = g.trans_b ? kDotRows : kStreamRows;
  if (g.m <= most_rows || g.k <= 0) {
    const int few = static_cast<int>(std::min<int64_t>(g.m, most_rows));
    GemmArgs part = g;
    part.k = std::max<int64_t>(g.k, 0);
    for (int64_t i = 0; i < g.m; i += few) {  // more than one round only when k == 0
      part.m = std::min<int64_t>(few, g.m - i);
      part.c = const_cast<char*>(at(g.c, g.c_type, i * g.ldc));
      run_stream(part, {static_cast<int>(part.m), g.n, part.k, g.a, g.lda, !g.trans_a, g.a_type, g.b, g.ldb, g.trans_b, g.b_type, false}, *kernels);
    }
    return;
  }
  if (g.n <= kStreamRows && !g.trans_a) {
    return run_stream(g, {static_cast<int>(g.n), g.m, g.k, g.b, g.ldb, g.trans_b, g.b_type, g.a, g.lda, true, g.a_type, true}, *kernels);
  }
  run_packed(g, *kernels);
}

}  // namespace llm::cpu
