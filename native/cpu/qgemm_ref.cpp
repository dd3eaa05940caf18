// Scalar kernels of qgemm, the oracle of the others: exact adds in double, int8 quantizes like the vector kernels and adds blocks in double.
#include <cmath>

#include "gemm_scalar.h"
#include "qgemm_kernels.h"

namespace llm::cpu {
namespace {

constexpr int kMostRows = 8;

int weight_at(const QTask& t, int64_t block, int k, int row) {
  if (t.bits == 4) {
    const uint8_t byte = t.weights[block * 256 + k / 8 * 64 + row * 4 + k % 4];
    return k % 8 < 4 ? byte & 15 : byte >> 4;
  }
  return t.weights[block * 512 + k / 4 * 64 + row * 4 + k % 4];
}

int zero_at(const QTask& t, int64_t group, int row) {
  if (t.bits == 8) return 128;
  return t.zeros == nullptr ? 8 : t.zeros[group * kPanelRows + row];
}

void exact(const QTask& t) {
  for (int n = 0; n < kPanelRows; ++n) {
    double sum[kMostRows] = {};
    for (int64_t b = 0; b < t.blocks; ++b) {
      const int64_t group = b / t.group_blocks;
      const double scale = load_element(t.scale_type, t.scales, group * kPanelRows + n);
      const int zero = zero_at(t, group, n);
      for (int k = 0; k < kBlock; ++k) {
        const double w = (weight_at(t, b, k, n) - zero) * scale;
        for (int m = 0; m < t.rows; ++m) sum[m] += w * static_cast<double>(t.x[(b * kBlock + k) * t.rows + m]);
      }
    }
    for (int m = 0; m < t.rows; ++m) t.out[m * kPanelRows + n] = static_cast<float>(sum[m]);
  }
}

void int8(const QTask& t) {
  for (int n = 0; n < kPanelRows; ++n) {
    double sum[kMostRows] = {};
    for (int64_t b = 0; b < t.blocks; ++b) {
      const int64_t group = b / t.group_blocks;
      const double scale = load_element(t.scale_type, t.scales, group * kPanelRows + n);
      const int zero = zero_at(t, group, n);
      int dot[kMostRows] = {};
      for (int k = 0; k < kBlock; ++k) {
        const int w = weight_at(t, b, k, n) - zero;
        for (int m = 0; m < t.rows; ++m) dot[m] += w * t.xq[((b * 8 + k / 4) * t.rows + m) * 4 + k % 4];
      }
      for (int m = 0; m < t.rows; ++m) sum[m] += scale * static_cast<double>(t.x_scale[b * t.rows + m]) * dot[m];
    }
    for (int m = 0; m < t.rows; ++m) t.out[m * kPanelRows + n] = static_cast<float>(sum[m]);
  }
}

void quantize(const float* x, int64_t blocks, int64_t group_blocks, int rows, int row, int offset, int8_t* xq, float* x_scale,
              int32_t* x_offset, float* x_group) {
  float group_sum = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const float* from = x + b * kBlock;
    float most = 0;
    bool nan = false;
    for (int k = 0; k < kBlock; ++k) {
      nan |= std::isnan(from[k]);
      most = std::fmax(most, std::fabs(from[k]));
    }
    const float scale = nan ? NAN : most / 127.0f;
    const float inverse = scale > 0 && std::isfinite(127.0f / most) && std::isfinite(most) ? 127.0f / most : 0.0f;
    int sum = 0;
    for (int k = 0; k < kBlock; ++k) {
      const float scaled = from[k] * inverse;
      const int q = scaled == scaled ? static_cast<int>(std::nearbyintf(scaled)) : 1;  // inf * 0: keep a 1 so that the scale shows
      xq[((b * 8 + k / 4) * rows + row) * 4 + k % 4] = static_cast<int8_t>(q);
      sum += q;
    }
    x_scale[b * rows + row] = scale;
    x_offset[b * rows + row] = -offset * sum;
    if (x_group != nullptr) {
      if (b % group_blocks == 0) group_sum = 0;
      group_sum += scale * static_cast<float>(sum);
      x_group[b / group_blocks * rows + row] = group_sum;
    }
  }
}

void prescale(int, int64_t, float*) {}  // the scalar kernels take values where they are

}  // namespace

void register_qgemm_reference(QKernels* t) {
  t->rows = kMostRows;
  t->exact = exact;
  t->int8 = int8;
  t->quantize = quantize;
  t->prescale = prescale;
}

}  // namespace llm::cpu
