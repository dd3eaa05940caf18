// Movement: fill, copies of strided rows, concatenation, gathering of rows, and views of any strides made dense. Elements are opaque: a
// kernel moves words of 16, 8, 4, 2 or 1 bytes, the widest that all addresses, lengths and strides are multiples of.
#include "cuda/movement.h"

#include <algorithm>
#include <cstring>

#include "core/half.h"
#include "cuda/vector.cuh"

namespace llm::cuda {
namespace {

constexpr int kSteps = 4;  // words a thread has on the way
constexpr int kPerBlock = kEachThreads * kSteps;

// Largest power of two, at most 16, that divides all numbers whose bits were or-ed.
int word_of(uint64_t bits) {
  bits |= 16;
  return static_cast<int>(bits & (~bits + 1));
}
uint64_t bits_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }
uint64_t bits_of(int64_t n) { return static_cast<uint64_t>(n); }

template <class F>
const char* with_word(int bytes, F&& f) {
  switch (bytes) {
    case 16: return f(uint4{});
    case 8: return f(uint2{});
    case 4: return f(uint32_t{});
    case 2: return f(uint16_t{});
    default: return f(uint8_t{});
  }
}

// ---- rows of bytes -----------------------------------------------------------------------------------------------------------

// `rows` rows of `bytes` dense bytes; the strides count bytes.
struct Move {
  const char* from;
  char* to;
  int64_t rows, bytes, from_stride, to_stride;
  Divider words = {};  // of a row; set by the launch
};
constexpr int kMoves = 24;
struct Moves {
  Move move[kMoves];
};

// One move a grid row. A single row need not be whole words: its last bytes move one by one.
template <class W>
__global__ void __launch_bounds__(kEachThreads) move_kernel(const __grid_constant__ Moves moves) {
  const Move& m = moves.move[blockIdx.y];
  const int64_t words = m.bytes / static_cast<int64_t>(sizeof(W)), total = m.rows * words;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x;
  W v[kSteps];
  int64_t to[kSteps];
#pragma unroll
  for (int u = 0; u < kSteps; u++) {
    const int64_t i = first + u * kEachThreads;
    if (i >= total) continue;
    int64_t from = to[u] = i * static_cast<int64_t>(sizeof(W));
    if (m.rows != 1) {
      int64_t row, word;
      m.words(i, row, word);
      from = row * m.from_stride + word * static_cast<int64_t>(sizeof(W));
      to[u] = row * m.to_stride + word * static_cast<int64_t>(sizeof(W));
    }
    v[u] = *reinterpret_cast<const W*>(m.from + from);
  }
#pragma unroll
  for (int u = 0; u < kSteps; u++)
    if (first + u * kEachThreads < total) *reinterpret_cast<W*>(m.to + to[u]) = v[u];
  if (sizeof(W) > 1 && blockIdx.x == 0 && m.rows == 1) {
    const int64_t at = words * static_cast<int64_t>(sizeof(W)) + threadIdx.x;
    if (at < m.bytes) m.to[at] = m.from[at];
  }
}

// Collects moves and launches one kernel for up to kMoves of them.
class Mover {
 public:
  explicit Mover(Context& ctx) : ctx_(ctx) {}
  void add(Move m) {
    if (m.rows == 0 || m.bytes == 0) return;
    if (m.from_stride == m.bytes && m.to_stride == m.bytes) m.bytes *= m.rows, m.rows = 1;
    if (used_ == kMoves) flush();
    bits_ |= bits_of(m.from) | bits_of(m.to);
    if (m.rows != 1) bits_ |= bits_of(m.bytes) | bits_of(m.from_stride) | bits_of(m.to_stride);
    largest_ = std::max(largest_, m.rows * m.bytes);
    moves_.move[used_++] = m;
  }
  // The first error of all launches.
  const char* finish() {
    flush();
    return error_;
  }

 private:
  void flush() {
    if (used_ == 0) return;
    const int word = word_of(bits_);
    for (int i = 0; i < used_; i++) moves_.move[i].words = Divider(moves_.move[i].bytes / word, moves_.move[i].rows * moves_.move[i].bytes / word);
    const dim3 grid(static_cast<unsigned>(std::max<int64_t>(1, ceil_div(largest_ / word, kPerBlock))), static_cast<unsigned>(used_));
    const char* e = with_word(word, [&](auto w) {
      move_kernel<decltype(w)><<<grid, kEachThreads, 0, ctx_.stream>>>(moves_);
      return launched();
    });
    if (!error_) error_ = e;
    used_ = 0;
    bits_ = 0;
    largest_ = 0;
  }

  Context& ctx_;
  Moves moves_{};
  int used_ = 0;
  uint64_t bits_ = 0;
  int64_t largest_ = 0;
  const char* error_ = nullptr;
};

const char* move_one(Context& ctx, const Move& m) {
  Mover mover(ctx);
  mover.add(m);
  return mover.finish();
}

// ---- any strides -------------------------------------------------------------------------------------------------------------

struct Dims {
  int n = 0;
  int64_t shape[kMaxDims] = {}, stride[kMaxDims] = {};
  Divider by[kMaxDims] = {};  // shape; set by the launch
};

// The same elements in the same order with the fewest dims: no dims of one element, neighbours that form one dim merged.
Dims collapse(const View& v) {
  Dims d;
  for (int i = 0; i < v.ndim; i++) {
    if (v.shape[i] == 1) continue;
    if (d.n > 0 && d.stride[d.n - 1] == v.stride[i] * v.shape[i]) {
      d.shape[d.n - 1] *= v.shape[i];
      d.stride[d.n - 1] = v.stride[i];
    } else {
      d.shape[d.n] = v.shape[i];
      d.stride[d.n++] = v.stride[i];
    }
  }
  return d;
}

// y[i] = the i-th word in the order of the dims; shapes and strides count words.
template <class W>
__global__ void __launch_bounds__(kEachThreads) strided_kernel(const W* x, W* y, int64_t n, const __grid_constant__ Dims dims) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x;
  W v[kSteps];
#pragma unroll
  for (int u = 0; u < kSteps; u++) {
    int64_t rest = first + u * kEachThreads, at = 0;
    if (rest >= n) continue;
    for (int d = dims.n - 1; d > 0; d--) {
      int64_t next, index;
      dims.by[d](rest, next, index);
      at += index * dims.stride[d];
      rest = next;
    }
    v[u] = x[at + rest * dims.stride[0]];
  }
#pragma unroll
  for (int u = 0; u < kSteps; u++)
    if (first + u * kEachThreads < n) y[first + u * kEachThreads] = v[u];
}

// The last dim is strided, dim d is dense: a batch of matrices to transpose.
const char* transpose_dims(Context& ctx, const View& x, const View& y, const Dims& dims, int d, int64_t size) {
  Transposition t;
  t.from = x.data;
  t.to = y.data;
  t.rows = dims.shape[dims.n - 1];
  t.from_row = dims.stride[dims.n - 1];
  t.cols = dims.shape[d];
  int64_t dense = t.rows;  // stride of dim i in y
  for (int i = dims.n - 2; i >= 0; i--) {
    if (i == d) {
      t.to_col = dense;
    } else {
      t.batch[t.batch_dims] = dims.shape[i];
      t.from_batch[t.batch_dims] = dims.stride[i];
      t.to_batch[t.batch_dims++] = dense;
    }
    dense *= dims.shape[i];
  }
  return transpose_tiles(ctx, t, size);
}

// ---- rows by index -----------------------------------------------------------------------------------------------------------

template <class W>
__global__ void __launch_bounds__(kEachThreads)
    gather_kernel(const W* x, const int32_t* rows, W* y, int64_t total, const Divider words, int64_t limit, int* fault_word, int code) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x;
  W v[kSteps];
#pragma unroll
  for (int u = 0; u < kSteps; u++) {
    const int64_t i = first + u * kEachThreads;
    if (i >= total) continue;
    int64_t row, word;
    words(i, row, word);
    const int64_t from = rows[row];
    v[u] = W{};
    if (from >= 0 && from < limit) v[u] = x[from * words.d + word];
    else if (word == 0) raise(fault_word, code);
  }
#pragma unroll
  for (int u = 0; u < kSteps; u++)
    if (first + u * kEachThreads < total) y[first + u * kEachThreads] = v[u];
}

// ---- one value ---------------------------------------------------------------------------------------------------------------

// Elements before the first 16-byte boundary and after the last one are stored singly.
template <class T>
__global__ void __launch_bounds__(kEachThreads) fill_kernel(T* x, int64_t n, int head, T value) {
  Pack<T> pack;
#pragma unroll
  for (int j = 0; j < Pack<T>::n; j++) pack.v[j] = value;
  const int64_t packs = (n - head) / Pack<T>::n;
#pragma unroll
  for (int u = 0; u < kSteps; u++) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kPerBlock + u * kEachThreads + threadIdx.x;
    if (i < packs) store_pack(x + head + i * Pack<T>::n, pack);
  }
  if (blockIdx.x == 0) {
    const int64_t tail = head + packs * Pack<T>::n + threadIdx.x;
    if (threadIdx.x < head) x[threadIdx.x] = value;
    if (tail < n) x[tail] = value;
  }
}

template <class T>
const char* fill_as(Context& ctx, const View& v, T value) {
  const int64_t n = view_numel(v);
  if (n == 0) return nullptr;
  const int64_t before = static_cast<int64_t>((16 - (bits_of(v.data) & 15)) & 15) / static_cast<int64_t>(sizeof(T));
  const int head = static_cast<int>(std::min(before, n));
  const int64_t blocks = std::max<int64_t>(1, ceil_div((n - head) / Pack<T>::n, kPerBlock));
  fill_kernel<T><<<static_cast<unsigned>(blocks), kEachThreads, 0, ctx.stream>>>(data_of<T>(v), n, head, value);
  return launched();
}

}  // namespace

const char* fill(Context& ctx, const KernelArgs& k) {
  const View& x = k.in[0];
  const double value = k.attr[0];
  const float rounded = static_cast<float>(value);
  switch (x.dtype) {
    case DType::f32: return fill_as(ctx, x, rounded);
    case DType::f16: return fill_as(ctx, x, f32_to_f16(rounded));
    case DType::bf16: return fill_as(ctx, x, f32_to_bf16(rounded));
    case DType::i32: return fill_as(ctx, x, static_cast<int32_t>(value));
    case DType::i64: return fill_as(ctx, x, static_cast<int64_t>(value));
    case DType::i8: return fill_as(ctx, x, static_cast<int8_t>(rounded));
    case DType::u8: return fill_as(ctx, x, static_cast<uint8_t>(rounded));
  }
  return "an element type of the table expected";
}

const char* move_view(Context& ctx, const View& to, const View& from) {
  const int64_t size = static_cast<int64_t>(dtype_bytes(to.dtype));
  const RowPair p = row_pair(to, from);
  if (p.rows * p.inner == 0) return nullptr;
  const int64_t bytes = p.inner * size;
  const Move move{from.data, to.data, p.rows, bytes, p.stride_b * size, p.stride_a * size};
  const char* to_end = to.data + (p.rows - 1) * move.to_stride + bytes;
  const char* from_end = from.data + (p.rows - 1) * move.from_stride + bytes;
  if (to.data == from.data && move.to_stride == move.from_stride) return nullptr;  // onto itself
  if (to.data >= from_end || from.data >= to_end) return move_one(ctx, move);
  // The ranges meet (columns of one matrix, or a true overlap): everything is read before anything is written.
  char* between = static_cast<char*>(ctx.scratch(static_cast<size_t>(p.rows * bytes)));
  const Move out{from.data, between, p.rows, bytes, move.from_stride, bytes}, in{between, to.data, p.rows, bytes, bytes, move.to_stride};
  if (const char* e = move_one(ctx, out)) return e;
  return move_one(ctx, in);
}

const char* contiguous(Context& ctx, const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const int64_t n = view_numel(x), size = static_cast<int64_t>(dtype_bytes(x.dtype));
  if (n == 0) return nullptr;
  Dims dims = collapse(x);
  const bool dense = dims.n == 0 || dims.stride[dims.n - 1] == 1;
  if (dense && dims.n <= 2) {
    const int64_t inner = dims.n == 0 ? 1 : dims.shape[dims.n - 1], rows = n / inner;
    const Move move{x.data, y.data, rows, inner * size, (dims.n == 2 ? dims.stride[0] : inner) * size, inner * size};
    return move_one(ctx, move);
  }
  if (!dense)
    for (int d = 0; d + 1 < dims.n; d++)
      if (dims.stride[d] == 1 && dims.shape[d] > 1 && dims.shape[dims.n - 1] > 1) return transpose_dims(ctx, x, y, dims, d, size);
  uint64_t bits = bits_of(x.data) | bits_of(y.data);
  if (!dense) {  // one element at a time, as the dim after the last
    bits |= static_cast<uint64_t>(size);
  } else {
    bits |= bits_of(dims.shape[dims.n - 1] * size);
    for (int d = 0; d + 1 < dims.n; d++) bits |= bits_of(dims.stride[d] * size);
  }
  const int64_t word = word_of(bits);
  if (dense) dims.shape[dims.n - 1] = dims.shape[dims.n - 1] * size / word;
  for (int d = 0; d < dims.n - (dense ? 1 : 0); d++) dims.stride[d] = dims.stride[d] * size / word;
  const int64_t words = n * size / word;
  for (int d = 0; d < dims.n; d++) dims.by[d] = Divider(dims.shape[d], words);
  return with_word(static_cast<int>(word), [&](auto w) {
    using W = decltype(w);
    const auto blocks = static_cast<unsigned>(ceil_div(words, kPerBlock));
    strided_kernel<W><<<blocks, kEachThreads, 0, ctx.stream>>>(data_of<const W>(x), data_of<W>(y), words, dims);
    return launched();
  });
}

const char* transpose(Context& ctx, const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  Transposition t;
  t.from = x.data;
  t.to = y.data;
  t.rows = x.shape[0];
  t.cols = x.shape[1];
  t.from_row = x.stride[0];
  t.to_col = t.rows;
  return transpose_tiles(ctx, t, static_cast<int64_t>(dtype_bytes(x.dtype)));
}

const char* concat_rows(Context& ctx, const KernelArgs& k) {
  Mover mover(ctx);
  char* to = k.out[0].data;
  for (int i = 0; i < k.n_in; i++) {
    const int64_t bytes = view_numel(k.in[i]) * static_cast<int64_t>(dtype_bytes(k.in[i].dtype));
    mover.add(Move{k.in[i].data, to, 1, bytes, bytes, bytes});
    to += bytes;
  }
  return mover.finish();
}

const char* concat_cols(Context& ctx, const KernelArgs& k) {
  const View& y = k.out[0];
  const int64_t size = static_cast<int64_t>(dtype_bytes(y.dtype)), rows = y.shape[0], width = y.shape[1] * size;
  Mover mover(ctx);
  char* to = y.data;
  for (int i = 0; i < k.n_in; i++) {
    const int64_t bytes = k.in[i].shape[1] * size;
    mover.add(Move{k.in[i].data, to, rows, bytes, k.in[i].stride[0] * size, width});
    to += bytes;
  }
  return mover.finish();
}

const char* gather_rows(Context& ctx, const KernelArgs& k) {
  const View &x = k.in[0], &y = k.out[0];
  const int64_t m = view_numel(k.in[1]), total = view_numel(y) * static_cast<int64_t>(dtype_bytes(y.dtype));
  if (total == 0) return nullptr;
  const int64_t bytes = total / m;
  const int word = word_of(bits_of(x.data) | bits_of(y.data) | bits_of(bytes));
  return with_word(word, [&](auto w) {
    using W = decltype(w);
    const int64_t words = total / word;
    gather_kernel<W><<<static_cast<unsigned>(ceil_div(words, kPerBlock)), kEachThreads, 0, ctx.stream>>>(
        data_of<const W>(x), data_of<const int32_t>(k.in[1]), data_of<W>(y), words, Divider(bytes / word, words), x.shape[0], ctx.fault_word,
        ctx.code(Fault::row_index));
    return launched();
  });
}

}  // namespace llm::cuda
