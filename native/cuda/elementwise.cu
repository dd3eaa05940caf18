// Elementwise arithmetic and casts: y = f(x, …) in f32, one rounding to the result's dtype. All are bound by memory; the loop is in
// vector.cuh. What only moves bits is in movement.cu and transpose.cu.
#include "cuda/movement.h"
#include "cuda/tables.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

// ---- one operand -------------------------------------------------------------------------------------------------------------

template <class T, class F>
struct Unary {
  F f;
  const T* x;
  T* y;
  template <int V>
  struct Registers {
    float x[V];
  };
  template <int V>
  __device__ void load(int64_t i, Registers<V>& r) const {
    load_floats(x + i, r.x);
  }
  template <int V>
  __device__ void store(int64_t i, Registers<V>& r) const {
#pragma unroll
    for (int j = 0; j < V; j++) r.x[j] = f(r.x[j]);
    store_floats(y + i, r.x);
  }
};

template <class T, class F>
const char* unary_as(Context& ctx, const KernelArgs& k, F f) {
  const View &x = k.in[0], &y = k.out[0];
  return each<kWidth<T>>(ctx, view_numel(x), aligned16(x.data) && aligned16(y.data), Unary<T, F>{f, data_of<T>(x), data_of<T>(y)});
}

struct Times {
  const float* tensor;  // its first element, or null: `value`
  float value;
  __device__ float operator()(float x) const { return x * (tensor ? *tensor : value); }
};

const char* times(Context& ctx, const KernelArgs& k, Times f) {
  return dispatch(k.in[0].dtype, [&](auto t) { return unary_as<decltype(t)>(ctx, k, f); });
}
const char* scale(Context& ctx, const KernelArgs& k) { return times(ctx, k, {nullptr, static_cast<float>(k.attr[0])}); }
const char* mul_scalar_tensor(Context& ctx, const KernelArgs& k) { return times(ctx, k, {data_of<float>(k.in[1]), 0.f}); }

// Sigmoid to the accuracy of T: a few ulp of f32, or what 16 bits can show.
template <class T>
__device__ inline float sigmoid(float x) {
  if constexpr (sizeof(T) == 4) return 1.f / (1.f + expf(-x));
  else return __fdividef(1.f, 1.f + exp_fast(-x));
}

template <class T>
struct Silu {
  __device__ float operator()(float x) const { return x * sigmoid<T>(x); }
};
const char* silu(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) { return unary_as<decltype(t)>(ctx, k, Silu<decltype(t)>{}); });
}

// ---- two operands ------------------------------------------------------------------------------------------------------------

// What b is: of a's shape, one element, or one element a column.
enum class Second { same, one, row };

template <class T, class B, Second kSecond, class F>
struct Binary {
  F f;
  const T* a;
  const B* b;
  T* y;
  Divider width;
  template <int V>
  struct Registers {
    float a[V], b[kSecond == Second::one ? 1 : V];
  };
  template <int V>
  __device__ void load(int64_t i, Registers<V>& r) const {
    load_floats(a + i, r.a);
    if constexpr (kSecond == Second::same) {
      load_floats(b + i, r.b);
    } else if constexpr (kSecond == Second::one) {
      r.b[0] = to_float(*b);
    } else {
      int64_t row, col;
      width(i, row, col);
      load_floats(b + col, r.b);
    }
  }
  template <int V>
  __device__ void store(int64_t i, Registers<V>& r) const {
#pragma unroll
    for (int j = 0; j < V; j++) r.a[j] = f(r.a[j], r.b[kSecond == Second::one ? 0 : j]);
    store_floats(y + i, r.a);
  }
};

template <class T, class B, Second kSecond, class F>
const char* binary_as(Context& ctx, const View& a, const View& b, const View& y, F f) {
  constexpr int V = kWidth<T, B>;
  const int64_t n = view_numel(a), width = view_numel(b);
  bool aligned = aligned16(a.data) && aligned16(y.data);
  if (kSecond != Second::one) aligned = aligned && aligned16(b.data);
  if (kSecond == Second::row) aligned = aligned && width % V == 0;
  return each<V>(ctx, n, aligned, Binary<T, B, kSecond, F>{f, data_of<T>(a), data_of<B>(b), data_of<T>(y), Divider(width, n)});
}
template <class F>
const char* binary(Context& ctx, const KernelArgs& k, F f) {
  const View &a = k.in[0], &b = k.in[1], &y = k.out[0];
  const int64_t n = view_numel(a), m = view_numel(b);
  return dispatch(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (m == n) return binary_as<T, T, Second::same>(ctx, a, b, y, f);
    if (m == 1) return binary_as<T, T, Second::one>(ctx, a, b, y, f);
    return binary_as<T, T, Second::row>(ctx, a, b, y, f);
  });
}

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Sub {
  __device__ float operator()(float a, float b) const { return a - b; }
};
struct Mul {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct MulOrDivide {
  bool divide;
  __device__ float operator()(float a, float b) const { return divide ? a / b : a * b; }
};
template <class T>
struct SiluBackward {
  __device__ float operator()(float dy, float x) const {
    const float s = sigmoid<T>(x);
    return dy * (s * fmaf(x, 1.f - s, 1.f));
  }
};

const char* add(Context& ctx, const KernelArgs& k) { return binary(ctx, k, Add{}); }
const char* sub(Context& ctx, const KernelArgs& k) { return binary(ctx, k, Sub{}); }
const char* mul(Context& ctx, const KernelArgs& k) { return binary(ctx, k, Mul{}); }
const char* mul_cols(Context& ctx, const KernelArgs& k) {
  const MulOrDivide f{k.attr[0] != 0};
  return dispatch(k.in[0].dtype, [&](auto t) { return binary_as<decltype(t), float, Second::row>(ctx, k.in[0], k.in[1], k.out[0], f); });
}
const char* silu_bwd(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) {
    using T = decltype(t);
    return binary_as<T, T, Second::same>(ctx, k.in[0], k.in[1], k.out[0], SiluBackward<T>{});
  });
}

// ---- two views in place, rows strided ----------------------------------------------------------------------------------------

// y = x, or y += alpha x.
template <class T, class X, bool kAdd>
struct InPlace {
  T* y;
  const X* x;
  float alpha;
  RowPair rows;  // a = y, b = x
  Divider inner;
  template <int V>
  struct Registers {
    float x[V];
  };
  __device__ int64_t place(int64_t i, int64_t stride) const {
    if (rows.rows == 1) return i;
    int64_t row, col;
    inner(i, row, col);
    return row * stride + col;
  }
  template <int V>
  __device__ void load(int64_t i, Registers<V>& r) const {
    load_floats(x + place(i, rows.stride_b), r.x);
    if constexpr (kAdd) {
      float v[V];
      load_floats(y + place(i, rows.stride_a), v);
#pragma unroll
      for (int j = 0; j < V; j++) r.x[j] = fmaf(alpha, r.x[j], v[j]);
    }
  }
  template <int V>
  __device__ void store(int64_t i, Registers<V>& r) const {
    store_floats(y + place(i, rows.stride_a), r.x);
  }
};

template <class T, class X, bool kAdd>
const char* in_place_as(Context& ctx, const View& y, const View& x, float alpha) {
  // Wide results are written 16 bytes a thread, so that each store fills whole sectors.
  constexpr int V = kWidth<T>;
  const RowPair rows = row_pair(y, x);
  const int64_t n = view_numel(y);
  const bool whole = rows.rows == 1 || (rows.inner % V == 0 && rows.stride_a % V == 0 && rows.stride_b % V == 0);
  return each<V, V == 8 ? 2 : 4>(ctx, n, whole && aligned16(y.data) && aligned16(x.data),
                                 InPlace<T, X, kAdd>{data_of<T>(y), data_of<X>(x), alpha, rows, Divider(rows.inner, n)});
}

const char* axpy(Context& ctx, const KernelArgs& k) {
  const View &y = k.in[0], &x = k.in[1];
  return dispatch(y.dtype, [&](auto t) {
    return dispatch(x.dtype, [&](auto s) { return in_place_as<decltype(t), decltype(s), true>(ctx, y, x, static_cast<float>(k.attr[0])); });
  });
}

const char* convert(Context& ctx, const View& y, const View& x) {
  if (y.dtype == x.dtype) return move_view(ctx, y, x);
  return dispatch(y.dtype, [&](auto t) {
    return dispatch(x.dtype, [&](auto s) -> const char* {
      using T = decltype(t);
      using X = decltype(s);
      if constexpr (std::is_same_v<T, X>) return nullptr;  // moved above
      else return in_place_as<T, X, false>(ctx, y, x, 1.f);
    });
  });
}
const char* copy(Context& ctx, const KernelArgs& k) { return convert(ctx, k.in[0], k.in[1]); }
const char* cast(Context& ctx, const KernelArgs& k) { return convert(ctx, k.out[0], k.in[0]); }

}  // namespace

const CudaEntry cuda_elementwise[] = {
    {op_add, add},
    {op_sub, sub},
    {op_mul, mul},
    {op_scale, scale},
    {op_axpy, axpy},
    {op_mul_scalar_tensor, mul_scalar_tensor},
    {op_fill, fill},
    {op_copy, copy},
    {op_cast, cast},
    {op_contiguous, contiguous},
    {op_transpose, transpose},
    {op_concat_rows, concat_rows},
    {op_concat_cols, concat_cols},
    {op_gather_rows, gather_rows},
    {op_mul_cols, mul_cols},
    {op_silu, silu},
    {op_silu_bwd, silu_bwd},
};
const int cuda_elementwise_count = sizeof(cuda_elementwise) / sizeof(cuda_elementwise[0]);

}  // namespace llm::cuda
