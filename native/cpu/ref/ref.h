// Shared by the reference kernels: element access by dtype, rows of views, and a row-parallel loop. The reference is written to
// be read and to be exact (sums in double, one rounding at the end), not to be fast: it is what the vector kernels are checked
// against and what runs on a CPU without AVX2.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "core/half.h"
#include "core/op.h"
#include "core/threadpool.h"
#include "cpu/kernels.h"
#include "gen/ops.h"

namespace llm {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

inline float load_element(const char* p, DType t, int64_t i) {
  switch (t) {
    case DType::f32: return reinterpret_cast<const float*>(p)[i];
    case DType::f16: return f16_to_f32(reinterpret_cast<const uint16_t*>(p)[i]);
    case DType::bf16: return bf16_to_f32(reinterpret_cast<const uint16_t*>(p)[i]);
    case DType::i32: return static_cast<float>(reinterpret_cast<const int32_t*>(p)[i]);
    case DType::i8: return static_cast<float>(reinterpret_cast<const int8_t*>(p)[i]);
    case DType::u8: return static_cast<float>(reinterpret_cast<const uint8_t*>(p)[i]);
    case DType::i64: return static_cast<float>(reinterpret_cast<const int64_t*>(p)[i]);
  }
  return 0;
}

inline void store_element(char* p, DType t, int64_t i, float v) {
  switch (t) {
    case DType::f32: reinterpret_cast<float*>(p)[i] = v; break;
    case DType::f16: reinterpret_cast<uint16_t*>(p)[i] = f32_to_f16(v); break;
    case DType::bf16: reinterpret_cast<uint16_t*>(p)[i] = f32_to_bf16(v); break;
    case DType::i32: reinterpret_cast<int32_t*>(p)[i] = static_cast<int32_t>(v); break;
    case DType::i8: reinterpret_cast<int8_t*>(p)[i] = static_cast<int8_t>(v); break;
    case DType::u8: reinterpret_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(v); break;
    case DType::i64: reinterpret_cast<int64_t*>(p)[i] = static_cast<int64_t>(v); break;
  }
}

// A view as rows over the last dim. Only the first dim may be strided.
struct Rows {
  char* data;
  DType dtype;
  int64_t rows, cols, inner, stride;

  int64_t at(int64_t r) const { return inner == 1 ? r * stride : (r / inner) * stride + (r % inner) * cols; }
  float get(int64_t r, int64_t c) const { return load_element(data, dtype, at(r) + c); }
  void set(int64_t r, int64_t c, float v) const { store_element(data, dtype, at(r) + c, v); }
};

inline Rows rows_of(const View& v) {
  const int64_t cols = v.ndim > 0 ? v.shape[v.ndim - 1] : 1;
  int64_t rows = 1, inner = 1;
  for (int i = 0; i + 1 < v.ndim; i++) rows *= v.shape[i];
  for (int i = 1; i + 1 < v.ndim; i++) inner *= v.shape[i];
  return Rows{v.data, v.dtype, rows, cols, inner, v.ndim > 1 ? v.stride[0] : cols};
}

// A view whose first dim may be strided, as `count` dense pieces of `length` elements; one piece when it is dense altogether.
struct Pieces {
  int64_t count, length, stride;
};

inline Pieces pieces_of(const View& v) {
  const int64_t n = view_numel(v);
  if (v.ndim < 1 || n == 0 || v.shape[0] == 1) return Pieces{1, n, n};
  const int64_t inner = n / v.shape[0];
  if (v.stride[0] == inner) return Pieces{1, n, n};
  return Pieces{v.shape[0], inner, v.stride[0]};
}

// Both operands cut the same way, as an in-place op on two strided views needs it.
inline void common_pieces(const View& a, const View& b, Pieces& pa, Pieces& pb) {
  pa = pieces_of(a);
  pb = pieces_of(b);
  if (pa.count == pb.count) return;
  const int64_t inner = view_numel(a) / a.shape[0];
  pa = Pieces{a.shape[0], inner, a.stride[0]};
  pb = Pieces{b.shape[0], inner, b.stride[0]};
}

inline bool present(const View& v) { return v.ndim >= 0 && v.data != nullptr; }

template <class T>
T* data_of(const View& v) {
  return reinterpret_cast<T*>(v.data);
}

// body(begin, end) over [0, n), in chunks of `grain` on the thread pool. The chunks do not depend on the number of threads.
template <class Body>
void parallel_rows(int64_t n, int64_t grain, const Body& body) {
  cpu::parallel_for(n, grain, body);
}

// Rows in a chunk such that a chunk is worth a thread's while (about 16k elements).
inline int64_t row_grain(int64_t cols) { return 1 + 16384 / (cols < 1 ? 1 : cols); }

}  // namespace
}  // namespace llm
