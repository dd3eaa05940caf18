// Packing, preparation of x and threading of the weight-only quantized GEMM.
#include "qgemm.h"

#include <algorithm>
#include <cstring>

#include "../core/threadpool.h"
#include "gemm_kernels.h"
#include "gemm_scalar.h"
#include "gemm_workspace.h"
#include "isa.h"
#include "qgemm_kernels.h"

namespace llm::cpu {
namespace {

constexpr int64_t kPassRows = 512;           // rows of x prepared at once
constexpr int64_t kTaskBytes = 128 << 10;    // weights of a task: stay in L2 while all rows of x pass

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Layout {
  int64_t panels, blocks, groups, group_blocks;
  int64_t panel_bytes, scale_bytes;  // of one panel
  int64_t scales_at, zeros_at, total;

  explicit Layout(const QWeight& w) {
    panels = ceil_div(w.n, kPanelRows);
    blocks = ceil_div(w.k, kBlock);
    group_blocks = std::max<int64_t>(1, std::min(w.group / kBlock, blocks));
    groups = ceil_div(blocks, group_blocks);
    panel_bytes = blocks * 64 * w.bits;
    scale_bytes = groups * kPanelRows * element_bytes(w.scale_type);
    scales_at = panels * panel_bytes;
    zeros_at = round_up(scales_at + panels * scale_bytes, 64);
    total = round_up(zeros_at + (w.has_zeros ? panels * groups * kPanelRows : 0), 64);
  }
};

const QKernels& q_kernels() {
  struct Tables {
    QKernels table[5] = {};
    Tables() {
      register_qgemm_reference(&table[0]);
#if defined(__x86_64__)
      register_qgemm_avx2(&table[1]);
      register_qgemm_avx512(&table[2]);
      register_qgemm_avx512(&table[3]);
      register_qgemm_avx512(&table[4]);
#endif
    }
  };
  static const Tables tables;
  return tables.table[static_cast<int>(active_isa())];
}

// The scales and zeros of panel p in the packed order; the weights are the caller's.
void pack_scales(const QWeight& w, const Layout& l, int64_t p, const void* scales, const uint8_t* zeros, uint8_t* out) {
  const int64_t bytes = element_bytes(w.scale_type);
  uint8_t* to = out + l.scales_at + p * l.scale_bytes;
  for (int64_t g = 0; g < l.groups; ++g) {
    for (int r = 0; r < kPanelRows; ++r) {
      const int64_t row = p * kPanelRows + r;
      uint8_t* at = to + (g * kPanelRows + r) * bytes;
      if (row < w.n) std::memcpy(at, static_cast<const uint8_t*>(scales) + (row * l.groups + g) * bytes, static_cast<size_t>(bytes));
      else std::memset(at, 0, static_cast<size_t>(bytes));
      if (w.has_zeros) out[l.zeros_at + (p * l.groups + g) * kPanelRows + r] = row < w.n ? zeros[row * l.groups + g] : 8;
    }
  }
}

// x of one pass, ready for the kernels: groups of rows one after the other.
struct Prepared {
  int64_t rows, groups;   // rows of x, groups of rows
  const float* x = nullptr;
  const int8_t* xq = nullptr;
  const float* x_scale = nullptr;
  const int32_t* x_offset = nullptr;
  const float* x_group = nullptr;
  int64_t start(int64_t g) const { return rows * g / groups; }
};

void widen_row(const GemmKernels* dense, Dt type, const void* x, int64_t at, int64_t k, float* out) {
  if (dense != nullptr) return dense->widen(type, static_cast<const char*>(x) + at * element_bytes(type), k, out);
  for (int64_t i = 0; i < k; ++i) out[i] = load_element(type, x, at + i);
}

Prepared prepare(const QWeight& w, const QGemmArgs& a, const Layout& l, const QKernels& kernels, int64_t row0, int64_t rows) {
  Prepared p;
  p.rows = rows;
  p.groups = ceil_div(rows, kernels.rows);
  const int64_t depth = l.blocks * kBlock;
  float *x = nullptr, *x_scale = nullptr, *x_group = nullptr;
  int8_t* xq = nullptr;
  int32_t* x_offset = nullptr;
  if (a.mode == QMode::exact) {
    p.x = x = static_cast<float*>(scratch(Scratch::quant, static_cast<size_t>(rows * depth) * 4));
  } else {
    auto* base = static_cast<char*>(scratch(Scratch::quant, static_cast<size_t>(rows * (depth + 8 * l.blocks + 4 * l.groups)) + 256));
    p.xq = xq = reinterpret_cast<int8_t*>(base);
    base += round_up(rows * depth, 64);
    p.x_scale = x_scale = reinterpret_cast<float*>(base);
    base += round_up(rows * l.blocks * 4, 64);
    p.x_offset = x_offset = reinterpret_cast<int32_t*>(base);
    base += round_up(rows * l.blocks * 4, 64);
    if (w.has_zeros) p.x_group = x_group = reinterpret_cast<float*>(base);
  }
  const GemmKernels* dense = gemm_kernels();
  parallel_for(p.groups, 1, [&](int64_t g, int64_t) {
    const int64_t first = p.start(g);
    const int count = static_cast<int>(p.start(g + 1) - first);
    const int64_t stride = depth + 16;
    auto* temp = static_cast<float*>(scratch(Scratch::rows, static_cast<size_t>(stride * count) * 4));
    for (int r = 0; r < count; ++r) {
      float* row = a.mode == QMode::exact && count == 1 ? x + first * depth : temp + r * stride;
      widen_row(dense, a.x_type, a.x, (row0 + first + r) * a.ldx, w.k, row);
      std::fill(row + w.k, row + depth, 0.0f);
      if (a.mode == QMode::exact) {
        kernels.prescale(w.bits, l.blocks, row);
      } else {
        kernels.quantize(row, l.blocks, l.group_blocks, count, r, w.bits == 4 ? 8 : 128, xq + first * depth, x_scale + first * l.blocks,
                         x_offset + first * l.blocks, x_group == nullptr ? nullptr : x_group + first * l.groups);
      }
    }
    if (a.mode != QMode::exact || count == 1) return;
    float* out = x + first * depth;
    if (dense != nullptr) return dense->f32.pack_a(Dt::f32, true, temp, stride, count, count, depth, out);
    for (int64_t k = 0; k < depth; ++k) {
      for (int r = 0; r < count; ++r) out[k * count + r] = temp[r * stride + k];
    }
  });
  return p;
}

void write_panel(const GemmKernels* dense, const QGemmArgs& a, int64_t row, int rows, int64_t col, int cols, const float* out, const float* bias) {
  if (dense != nullptr) {
    void* y = static_cast<char*>(a.y) + (row * a.ldy + col) * element_bytes(a.y_type);
    return dense->epilogue(rows, cols, out, kPanelRows, y, a.ldy, a.y_type, 1, 0, bias == nullptr ? nullptr : bias + col);
  }
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      const float value = out[r * kPanelRows + c] + (bias == nullptr ? 0.0f : bias[col + c]);
      store_element(a.y_type, a.y, (row + r) * a.ldy + col + c, value);
    }
  }
}

void run(const QWeight& w, const QGemmArgs& a) {
  if (a.m <= 0 || w.n <= 0) return;
  const Layout l(w);
  const QKernels& kernels = q_kernels();
  const GemmKernels* dense = gemm_kernels();
  const float* bias = nullptr;
  if (a.bias != nullptr && a.bias_type == Dt::f32) {
    bias = static_cast<const float*>(a.bias);
  } else if (a.bias != nullptr) {
    auto* wide = static_cast<float*>(scratch(Scratch::bias, static_cast<size_t>(w.n) * 4));
    widen_row(dense, a.bias_type, a.bias, 0, w.n, wide);
    bias = wide;
  }
  const auto* packed = static_cast<const uint8_t*>(a.packed);
  const int64_t grain = std::clamp<int64_t>(kTaskBytes / std::max<int64_t>(1, l.panel_bytes), 1, 16);
  for (int64_t row0 = 0; row0 < a.m; row0 += kPassRows) {
    const Prepared x = prepare(w, a, l, kernels, row0, std::min(kPassRows, a.m - row0));
    parallel_for(l.panels, grain, [&](int64_t begin, int64_t end) {
      alignas(64) float out[8 * kPanelRows];
      for (int64_t g = 0; g < x.groups; ++g) {
        const int64_t first = x.start(g);
        QTask t;
        t.bits = w.bits;
        t.scale_type = w.scale_type;
        t.blocks = l.blocks;
        t.group_blocks = l.group_blocks;
        t.rows = static_cast<int>(x.start(g + 1) - first);
        t.x = x.x == nullptr ? nullptr : x.x + first * l.blocks * kBlock;
        t.xq = x.xq == nullptr ? nullptr : x.xq + first * l.blocks * kBlock;
        t.x_scale = x.x_scale == nullptr ? nullptr : x.x_scale + first * l.blocks;
        t.x_offset = x.x_offset == nullptr ? nullptr : x.x_offset + first * l.blocks;
        t.x_group = x.x_group == nullptr ? nullptr : x.x_group + first * l.groups;
        t.out = out;
        for (int64_t p = begin; p < end; ++p) {
          t.weights = packed + p * l.panel_bytes;
          t.scales = packed + l.scales_at + p * l.scale_bytes;
          t.zeros = w.has_zeros ? packed + l.zeros_at + p * l.groups * kPanelRows : nullptr;
          (a.mode == QMode::exact ? kernels.exact : kernels.int8)(t);
          const int cols = static_cast<int>(std::min<int64_t>(kPanelRows, w.n - p * kPanelRows));
          write_panel(dense, a, row0 + first, t.rows, p * kPanelRows, cols, out, bias);
        }
      }
    });
  }
}

}  // namespace

const char* qweight_error(const QWeight& w) {
  if (w.bits != 4 && w.bits != 8) return "bits: expected 4 or 8";
  if (w.n < 0 || w.k < 0) return "n, k: expected 0 or more";
  if (w.bits == 4 && w.k % 2 != 0) return "k: expected an even number with 4 bits";
  if (w.group <= 0 || w.group % kBlock != 0) return "group: expected a positive multiple of 32";
  if (w.scale_type != Dt::f16 && w.scale_type != Dt::f32) return "scales: expected f16 or f32";
  if (w.bits == 8 && w.has_zeros) return "zeros: 8-bit weights are symmetric";
  return nullptr;
}

size_t packed_bytes(const QWeight& w) { return static_cast<size_t>(Layout(w).total); }

void repack_w4(const QWeight& w, const uint8_t* q, const void* scales, const uint8_t* zeros, void* packed) {
  const Layout l(w);
  auto* out = static_cast<uint8_t*>(packed);
  parallel_for(l.panels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      uint8_t* to = out + p * l.panel_bytes;
      std::memset(to, 0, static_cast<size_t>(l.panel_bytes));
      const int rows = static_cast<int>(std::min<int64_t>(kPanelRows, w.n - p * kPanelRows));
      for (int r = 0; r < rows; ++r) {
        const uint8_t* row = q + (p * kPanelRows + r) * (w.k / 2);
        for (int64_t eight = 0; eight * 8 < w.k; ++eight) {  // bytes k0|k1 k2|k3 k4|k5 k6|k7 -> k0|k4 k1|k5 k2|k6 k3|k7
          uint8_t s[4] = {};
          const int64_t have = std::min<int64_t>(4, w.k / 2 - eight * 4);
          for (int64_t i = 0; i < have; ++i) s[i] = row[eight * 4 + i];
          uint8_t* d = to + eight * 64 + r * 4;
          d[0] = static_cast<uint8_t>((s[0] & 15) | (s[2] & 15) << 4);
          d[1] = static_cast<uint8_t>(s[0] >> 4 | (s[2] & 0xf0));
          d[2] = static_cast<uint8_t>((s[1] & 15) | (s[3] & 15) << 4);
          d[3] = static_cast<uint8_t>(s[1] >> 4 | (s[3] & 0xf0));
        }
      }
      pack_scales(w, l, p, scales, zeros, out);
    }
  });
}

void repack_q8(const QWeight& w, const int8_t* q, const void* scales, void* packed) {
  const Layout l(w);
  auto* out = static_cast<uint8_t*>(packed);
  parallel_for(l.panels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      uint8_t* to = out + p * l.panel_bytes;
      std::memset(to, 128, static_cast<size_t>(l.panel_bytes));
      const int rows = static_cast<int>(std::min<int64_t>(kPanelRows, w.n - p * kPanelRows));
      for (int r = 0; r < rows; ++r) {
        const int8_t* row = q + (p * kPanelRows + r) * w.k;
        for (int64_t k = 0; k < w.k; ++k) to[k / 4 * 64 + r * 4 + k % 4] = static_cast<uint8_t>(row[k] + 128);
      }
      pack_scales(w, l, p, scales, nullptr, out);
    }
  });
}

void gemm_w4(const QWeight& w, const QGemmArgs& args) { run(w, args); }
void gemm_q8(const QWeight& w, const QGemmArgs& args) { run(w, args); }

void dequantize_rows(const QWeight& w, const void* packed, int64_t row0, int64_t row1, void* out, int64_t ldo, Dt out_type) {
  const Layout l(w);
  const auto* base = static_cast<const uint8_t*>(packed);
  parallel_for(row1 - row0, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = (row0 + i) / kPanelRows, r = (row0 + i) % kPanelRows;
      const uint8_t* weights = base + p * l.panel_bytes + r * 4;
      const uint8_t* scales = base + l.scales_at + p * l.scale_bytes;
      const uint8_t* zeros = w.has_zeros ? base + l.zeros_at + p * l.groups * kPanelRows + r : nullptr;
      float block[kBlock];
      for (int64_t b = 0; b < l.blocks; ++b) {
        const int64_t g = b / l.group_blocks;
        const float scale = load_element(w.scale_type, scales, g * kPanelRows + r);
        const int zero = w.bits == 8 ? 128 : (zeros == nullptr ? 8 : zeros[g * kPanelRows]);
        const int vectors = w.bits, values = 32 / w.bits;  // a block: `bits` vectors of `values` k each
        for (int v = 0; v < vectors; ++v) {
          const uint8_t* four = weights + (b * vectors + v) * 64;
          for (int j = 0; j < values; ++j) {
            const int q = w.bits == 8 ? four[j] : (j < 4 ? four[j] & 15 : four[j - 4] >> 4);
            block[v * values + j] = static_cast<float>(q - zero) * scale;
          }
        }
        const int64_t k0 = b * kBlock, count = std::min<int64_t>(kBlock, w.k - k0);
        for (int64_t j = 0; j < count; ++j) store_element(out_type, out, i * ldo + k0 + j, block[j]);
      }
    }
  });
}

}  // namespace llm::cpu
