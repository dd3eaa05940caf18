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

constexpr int64_t kBlockColumns = 256;     // most columns of a task (its B block stays in L2)
constexpr int64_t kBlockRows = 512;        // most rows of a task: B is packed again for each block of rows
constexpr int64_t kTasks = 16;             // tasks wanted: enough for the threads of common machines
constexpr int64_t kSharedBytes = 64 << 20; // most bytes packed or summed at once, shared by all threads
constexpr int64_t kPackDepth = 32;         // rows of B packed at a time when they are stored along n
constexpr int64_t kSlicedFrom = 32768;     // k from which sums are taken in slices (the backward pass of an output projection)
constexpr int64_t kSlice = 8192;           // k of a slice
constexpr int kStreamRows = 8;             // up to so many rows B is streamed instead of packed
constexpr int kDotRows = 16;               // the same when B is stored [n, k] (a linear layer)

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

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

// A block of C, cut into panels: rows evened out (16 rows are 8 + 8, not 14 + 2), columns as wide as the kernel is.
struct Block {
  int64_t row, rows, col, cols, row_panels, col_panels;
  int row_step, nr;
  int64_t panel_row(int64_t i) const { return std::min(rows, ceil_div(rows, row_step) * i / row_panels * row_step); }
  int panel_rows(int64_t i) const { return static_cast<int>(panel_row(i + 1) - panel_row(i)); }
  int panel_cols(int64_t j) const { return static_cast<int>(std::min<int64_t>(nr, cols - j * nr)); }
};

struct Plan {
  const GemmArgs& g;
  const GemmKernels& kernels;
  const Panels& panels;
  const float* bias;
  int64_t depth;               // k of a block
  int64_t k_blocks;            // all of them
  int64_t slices, slice_blocks;
  int64_t row0 = 0, rows = 0;  // rows of this pass
  int64_t row_blocks = 0, col_blocks = 0, block_rows = 0, block_cols = 0;
  float* packed_a = nullptr;   // A packed once for all tasks, or null: each task packs its own

  int64_t words(int64_t kc) const { return round_up(ceil_div(kc, panels.k_per_word), panels.word_step); }
  int64_t most_words() const { return words(std::min(depth, g.k)); }
  int64_t depth_of(int64_t kb) const { return std::min(depth, g.k - kb * depth); }
  int64_t tile() const { return static_cast<int64_t>(panels.mr) * panels.nr; }
  int64_t block_tiles() const { return ceil_div(block_rows, panels.mr) * ceil_div(block_cols, panels.nr); }
  float* shared_a(int64_t row, int64_t kb) const { return packed_a + words(kb * depth) * round_up(rows, panels.row_step) + row * words(depth_of(kb)); }

  Block block(int64_t index) const {
    Block b;
    b.row = index % row_blocks * block_rows;
    b.rows = std::min(block_rows, rows - b.row);
    b.col = index / row_blocks * block_cols;
    b.cols = std::min(block_cols, g.n - b.col);
    b.row_panels = ceil_div(b.rows, panels.mr);
    b.col_panels = ceil_div(b.cols, panels.nr);
    b.row_step = panels.row_step;
    b.nr = panels.nr;
    return b;
  }

  void pack_a(int64_t row, int count, int64_t kb, float* dst) const {
    const int64_t k0 = kb * depth, first = row0 + row;
    const void* src = at(g.a, g.a_type, g.trans_a ? k0 * g.lda + first : first * g.lda + k0);
    panels.pack_a(g.a_type, !g.trans_a, src, g.lda, count, static_cast<int>(round_up(count, panels.row_step)), depth_of(kb), dst);
  }

  // The panels of a block. Rows of B that are stored along n are read whole, a few at a time, as memory likes it.
  void pack_b(const Block& b, int64_t kb, float* dst) const {
    const int64_t kc = depth_of(kb), step = g.trans_b ? kc : kPackDepth;
    for (int64_t k = 0; k < kc; k += step) {
      for (int64_t j = 0; j < b.col_panels; ++j) {
        const int64_t col = b.col + j * b.nr, k0 = kb * depth + k;
        const int count = b.panel_cols(j), width = half(count) ? b.nr / 2 : b.nr;
        const void* src = at(g.b, g.b_type, g.trans_b ? col * g.ldb + k0 : k0 * g.ldb + col);
        panels.pack_b(g.b_type, g.trans_b, src, g.ldb, count, width, std::min(step, kc - k), dst + j * b.nr * words(kc) + words(k) * width);
      }
    }
  }

  bool half(int cols) const { return cols <= panels.nr / 2; }

  void finish(const Block& b, int64_t i, int64_t j, const float* sums) const {
    const int64_t col = b.col + j * b.nr;
    void* c = const_cast<char*>(at(g.c, g.c_type, (row0 + b.row + b.panel_row(i)) * g.ldc + col));
    kernels.epilogue(b.panel_rows(i), b.panel_cols(j), sums, b.nr, c, g.ldc, g.c_type, g.alpha, g.beta, bias == nullptr ? nullptr : bias + col);
  }
};

struct Session {  // tile state of a thread, where the kernels have any
  const Panels& panels;
  explicit Session(const Panels& p) : panels(p) {
    if (panels.begin != nullptr) panels.begin();
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    if (panels.end != nullptr) panels.end();
  }
};

// Sums of a block of C over the blocks of k [first, last). `sums`: block_tiles() tiles that keep them, or null: C is finished here.
void run_block(const Plan& p, const Block& block, int64_t first, int64_t last, float* sums) {
  const int64_t tile = p.tile(), most = p.most_words();
  const bool one = sums == nullptr && last - first == 1;  // a tile is done at once and needs no memory of its own
  auto* b = static_cast<float*>(scratch(Scratch::panel_b, static_cast<size_t>(block.col_panels * block.nr * most) * 4));
  auto* local_a = p.packed_a != nullptr ? nullptr : static_cast<float*>(scratch(Scratch::panel_a, static_cast<size_t>(p.panels.mr * most) * 4));
  auto* acc = sums != nullptr ? sums : static_cast<float*>(scratch(Scratch::tile, static_cast<size_t>(one ? tile : p.block_tiles() * tile) * 4));
  const Session session(p.panels);
  for (int64_t kb = first; kb < last; ++kb) {
    const int64_t words = p.words(p.depth_of(kb));
    p.pack_b(block, kb, b);
    for (int64_t i = 0; i < block.row_panels; ++i) {
      const int64_t row = block.row + block.panel_row(i);
      const int rows = block.panel_rows(i);
      const float* a = local_a;
      if (p.packed_a != nullptr) a = p.shared_a(row, kb);
      else p.pack_a(row, rows, kb, local_a);
      for (int64_t j = 0; j < block.col_panels; ++j) {
        float* out = one ? acc : acc + (i * block.col_panels + j) * tile;
        p.panels.micro(rows, p.half(block.panel_cols(j)), words, a, b + j * block.nr * words, out, kb == first);
        if (sums == nullptr && kb + 1 == last) p.finish(block, i, j, out);
      }
    }
  }
}

// Few outputs, very long sums: the slices of k are the tasks; their sums are added in order. B and A are read once.
void run_sliced(const Plan& p) {
  const int64_t blocks = p.row_blocks * p.col_blocks, tile = p.tile(), floats = p.block_tiles() * tile;
  auto* sums = static_cast<float*>(scratch(Scratch::shared_a, static_cast<size_t>(p.slices * blocks * floats) * 4));
  parallel_for(p.slices * blocks, 1, [&](int64_t task, int64_t) {
    const int64_t slice = task / blocks, first = slice * p.slice_blocks;
    run_block(p, p.block(task % blocks), first, std::min(p.k_blocks, first + p.slice_blocks), sums + task * floats);
  });
  const int64_t most_panels = ceil_div(p.block_rows, p.panels.mr);
  parallel_for(blocks * most_panels, 1, [&](int64_t index, int64_t) {
    const Block block = p.block(index / most_panels);
    const int64_t i = index % most_panels;
    for (int64_t j = 0; i < block.row_panels && j < block.col_panels; ++j) {
      float* total = sums + index / most_panels * floats + (i * block.col_panels + j) * tile;
      for (int64_t s = 1; s < p.slices; ++s) {
        p.kernels.epilogue(block.panel_rows(i), block.panel_cols(j), total + s * blocks * floats, block.nr, total, block.nr, Dt::f32, 1, 1, nullptr);
      }
      p.finish(block, i, j, total);
    }
  });
}

void run_blocks(Plan& p) {
  if (p.col_blocks > 1) {
    p.packed_a = static_cast<float*>(scratch(Scratch::shared_a, static_cast<size_t>(round_up(p.rows, p.panels.row_step) * p.k_blocks * p.most_words()) * 4));
    parallel_for(p.row_blocks * p.k_blocks, 1, [&](int64_t task, int64_t) {
      const Block block = p.block(task / p.k_blocks);
      const int64_t kb = task % p.k_blocks;
      for (int64_t i = 0; i < block.row_panels; ++i) {
        const int64_t row = block.row + block.panel_row(i);
        p.pack_a(row, block.panel_rows(i), kb, p.shared_a(row, kb));
      }
    });
  }
  parallel_for(p.row_blocks * p.col_blocks, 1, [&](int64_t task, int64_t) { run_block(p, p.block(task), 0, p.k_blocks, nullptr); });
}

// Cuts C into tasks. Every column of blocks reads A again (packed, cheap), every row of blocks packs B again (dear: a factor of 3).
void cut(Plan& p) {
  const int64_t n = p.g.n, mr = p.panels.mr, nr = p.panels.nr;
  if (p.slices > 1) {
    p.row_blocks = ceil_div(p.rows, kBlockColumns);
    p.col_blocks = ceil_div(n, 4 * kBlockColumns);
  } else {
    int64_t least = INT64_MAX;
    for (int64_t cols = ceil_div(n, kBlockColumns); cols <= ceil_div(n, nr); ++cols) {
      const int64_t wanted = std::min(ceil_div(kTasks, cols), ceil_div(p.rows, 4 * mr));
      const int64_t rows = std::max({int64_t{1}, ceil_div(p.rows, kBlockRows), wanted});
      const int64_t cost = cols * p.rows + 3 * rows * n + (rows * cols < kTasks ? INT64_MAX / 2 / (rows * cols + 1) : 0);
      if (cost < least) least = cost, p.row_blocks = rows, p.col_blocks = cols;
      if (cols >= kTasks) break;
    }
  }
  p.block_rows = round_up(ceil_div(p.rows, p.row_blocks), p.panels.row_step);
  p.row_blocks = ceil_div(p.rows, p.block_rows);
  p.block_cols = round_up(ceil_div(n, p.col_blocks), nr);
  p.col_blocks = ceil_div(n, p.block_cols);
}

const Panels& choose_panels(const GemmArgs& g, const GemmKernels& kernels) {
  if (g.a_type != Dt::bf16 || g.b_type != Dt::bf16) return kernels.f32;
  if (kernels.bf16_tile.micro != nullptr) return kernels.bf16_tile;
  return kernels.bf16_dot.micro != nullptr && bf16_dot_is_fast() ? kernels.bf16_dot : kernels.f32;
}

void run_packed(const GemmArgs& g, const GemmKernels& kernels) {
  const Panels& panels = choose_panels(g, kernels);
  const bool sliced = g.k >= kSlicedFrom;
  const int64_t step = panels.k_per_word * panels.word_step;
  const int64_t depth = sliced ? panels.depth : round_up(ceil_div(g.k, ceil_div(g.k, panels.depth)), step);
  Plan p{g, kernels, panels, widen_bias(g, kernels), depth, ceil_div(g.k, depth), 1, 0};
  if (sliced) {
    p.slice_blocks = kSlice / depth;
    p.slices = ceil_div(p.k_blocks, p.slice_blocks);
  }
  const int64_t row_bytes = 4 * (sliced ? p.slices * round_up(g.n, panels.nr) : p.k_blocks * p.most_words());
  const int64_t most_rows = std::max<int64_t>(sliced ? kBlockColumns : kBlockRows, kSharedBytes / row_bytes / kBlockRows * kBlockRows);
  for (p.row0 = 0; p.row0 < g.m; p.row0 += most_rows) {
    p.rows = std::min(most_rows, g.m - p.row0);
    p.packed_a = nullptr;
    cut(p);
    if (sliced) run_sliced(p);
    else run_blocks(p);
  }
}

struct Tables {
  GemmKernels table[kIsaCount] = {};
  Tables() {
#if defined(__x86_64__)
    register_gemm_avx2(&table[1]);
    register_gemm_avx512(&table[2]);
    register_gemm_avx512(&table[3]);
    register_gemm_avx512bf16(&table[3]);
#if defined(LLM_HAVE_AMX)
    table[4] = table[3];
    register_gemm_amx(&table[4]);
#endif
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
