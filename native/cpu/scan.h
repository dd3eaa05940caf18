// Passes over one row of logits that sampling is made of; one table for each instruction set.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace llm {

struct LogitScan {
  /// n elements as f32.
  void (*widen)(DType type, const char* from, int64_t n, float* to);
  /// The largest element and its lowest index (-inf and 0 when there is none); true when a NaN or +inf is among them.
  bool (*top)(const float* x, int64_t n, float* largest, int32_t* best);
  /// sum exp((x - largest) * inverse_temperature)
  double (*mass)(const float* x, int64_t n, float largest, float inverse_temperature);
  /// Indices, rising, of the elements in [low, high); returns how many. `ids` has room for n.
  int64_t (*collect)(const float* x, int64_t n, float low, float high, int32_t* ids);
};

extern const LogitScan avx2_scan, avx512_scan;

}  // namespace llm
