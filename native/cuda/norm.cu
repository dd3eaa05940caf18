// RMS norm, with the residual addition before it.
//
// A row belongs to a group of threads (part of a warp, a warp, or several warps). Each thread holds its part of the row, or of several
// short rows, in registers, so that a row is read once and written once. Rows that are not aligned to 16 bytes, or too wide, take the
// plain kernel, which reads a row twice.
#include "cuda/norm.cuh"

namespace llm::cuda {
namespace {

template <class T>
struct Forward {
  const T *x, *residual, *weight;  // residual and sum: add_rms_norm only
  T *y, *sum;
  float* rstd;
  RowView at;  // of x; all others are dense
  float eps;
  int lanes;
};

// A group takes R rows, one below the other.
template <class T, int P, int R, bool Add>
__global__ void __launch_bounds__(kThreads) norm_rows(const Forward<T> k) {
  follow();
  constexpr int N = Pack<T>::n;
  __shared__ float shared[2 * kMaxWarps * R];
  Group group(k.lanes, shared);
  const int groups = blockDim.x / k.lanes, packs = static_cast<int>(k.at.cols / N);
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * groups + group.index) * R;
  Pack<T> weight[P], v[R][P], other[R][P];
#pragma unroll
  for (int r = 0; r < R; r++) {
    const T *x = k.x + k.at.start(row + r), *residual = k.residual + (row + r) * k.at.cols;
#pragma unroll
    for (int j = 0; j < P; j++) {
      const int i = group.lane + j * k.lanes;
      if (i >= packs || row + r >= k.at.rows) continue;
      v[r][j] = load_pack(x + i * N);
      if (Add) other[r][j] = load_pack(residual + i * N);
    }
  }
#pragma unroll
  for (int j = 0; j < P; j++) {
    const int i = group.lane + j * k.lanes;
    if (i < packs) weight[j] = load_pack(k.weight + i * N);
  }
  float squares[R] = {};
#pragma unroll
  for (int r = 0; r < R; r++) {
#pragma unroll
    for (int j = 0; j < P; j++) {
      const int i = group.lane + j * k.lanes;
      if (i >= packs || row + r >= k.at.rows) continue;
      if (Add) {  // the norm is taken of the sum as it is stored
        float sum[N];
#pragma unroll
        for (int e = 0; e < N; e++) sum[e] = to_float(v[r][j].v[e]) + to_float(other[r][j].v[e]);
        round_to(v[r][j].v, sum);
        store_pack(k.sum + (row + r) * k.at.cols + i * N, v[r][j]);
      }
#pragma unroll
      for (int e = 0; e < N; e++) squares[r] = fmaf(to_float(v[r][j].v[e]), to_float(v[r][j].v[e]), squares[r]);
      keep_packed(v[r][j]);
    }
  }
  group.sum(squares);
#pragma unroll
  for (int r = 0; r < R; r++) {
    const float rstd = rstd_of(squares[r], k.at.cols, k.eps);
    if (row + r < k.at.rows && group.lane == 0) k.rstd[row + r] = rstd;
#pragma unroll
    for (int j = 0; j < P; j++) {
      const int i = group.lane + j * k.lanes;
      if (i >= packs || row + r >= k.at.rows) continue;
      keep_packed(weight[j]);
      float y[N];
#pragma unroll
      for (int e = 0; e < N; e++) y[e] = to_float(v[r][j].v[e]) * rstd * to_float(weight[j].v[e]);
      round_to(v[r][j].v, y);
      store_pack(k.y + (row + r) * k.at.cols + i * N, v[r][j]);
    }
  }
}

template <class T, bool Add>
__global__ void __launch_bounds__(kThreads) norm_rows_plain(const Forward<T> k) {
  __shared__ float shared[2 * kMaxWarps];
  Group group(k.lanes, shared);
  const int groups = blockDim.x / k.lanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * groups; first < k.at.rows; first += static_cast<int64_t>(gridDim.x) * groups) {
    const int64_t row = first + group.index, width = row < k.at.rows ? k.at.cols : 0, dense = row * k.at.cols;
    const T* x = k.x + k.at.start(row);
    float squares[1] = {};
    for (int64_t c = group.lane; c < width; c += k.lanes) {
      T v = x[c];
      if (Add) {
        v = from_float<T>(to_float(v) + to_float(k.residual[dense + c]));
        k.sum[dense + c] = v;  // read again below by the same thread
      }
      squares[0] = fmaf(to_float(v), to_float(v), squares[0]);
    }
    group.sum(squares);
    const float rstd = rstd_of(squares[0], k.at.cols, k.eps);
    if (row < k.at.rows && group.lane == 0) k.rstd[row] = rstd;
    for (int64_t c = group.lane; c < width; c += k.lanes)
      k.y[dense + c] = from_float<T>(to_float(Add ? k.sum[dense + c] : x[c]) * rstd * to_float(k.weight[c]));
  }
}

// Four packs a thread and operand keep memory busy; with few rows, more blocks are better.
template <class T, int P, bool Add>
void launch_forward(Context& ctx, const Forward<T>& k, const Split& s) {
  constexpr int R = 4 / P;
  const auto blocks = [&](int rows) { return static_cast<unsigned>(ceil_div(k.at.rows, s.groups * rows)); };
  if (blocks(R) >= static_cast<unsigned>(ctx.sms) * 2) launch(ctx, norm_rows<T, P, R, Add>, blocks(R), s.threads(), 0, k);
  else launch(ctx, norm_rows<T, P, 1, Add>, blocks(1), s.threads(), 0, k);
}

template <class T, bool Add>
const char* forward(Context& ctx, Forward<T> k, DType dtype) {
  if (k.at.rows == 0) return nullptr;
  const RowView dense{k.at.rows, k.at.cols, 1, k.at.cols};
  const bool packed = k.at.cols > 0 && packs_fit(k.x, dtype, k.at) && packs_fit(k.y, dtype, dense) && aligned16(k.weight) &&
                      (!Add || (aligned16(k.residual) && aligned16(k.sum)));
  const Split s = split_of(packed, k.at.cols / Pack<T>::n, k.at.cols, [](int) { return 128; });
  k.lanes = s.lanes;
  switch (s.packs_per_thread) {
    case 1: launch_forward<T, 1, Add>(ctx, k, s); break;
    case 2: launch_forward<T, 2, Add>(ctx, k, s); break;
    case 4: launch_forward<T, 4, Add>(ctx, k, s); break;
    default: norm_rows_plain<T, Add><<<grid_for(ctx, k.at.rows, s.groups), s.threads(), 0, ctx.stream>>>(k);
  }
  return launched();
}

}  // namespace

const char* rms_norm(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) {
    using T = decltype(t);
    Forward<T> f{data_of<T>(k.in[0]), nullptr, data_of<T>(k.in[1]), data_of<T>(k.out[0]), nullptr,
                 data_of<float>(k.out[1]), row_view(k.in[0]), static_cast<float>(k.attr[0]), 0};
    return forward<T, false>(ctx, f, k.in[0].dtype);
  });
}

const char* add_rms_norm(Context& ctx, const KernelArgs& k) {
  return dispatch(k.in[0].dtype, [&](auto t) {
    using T = decltype(t);
    Forward<T> f{data_of<T>(k.in[0]),      data_of<T>(k.in[1]), data_of<T>(k.in[2]),            data_of<T>(k.out[0]), data_of<T>(k.out[1]),
                 data_of<float>(k.out[2]), row_view(k.in[0]),    static_cast<float>(k.attr[0]), 0};
    return forward<T, true>(ctx, f, k.in[0].dtype);
  });
}

}  // namespace llm::cuda
