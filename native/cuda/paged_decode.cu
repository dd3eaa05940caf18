// A decode step over the paged cache: the work of paged_work.cuh done by the warps of paged_decode.cuh.
#include "cuda/paged_decode.cuh"

namespace llm::cuda {
namespace {

template <class T, class C, int D>
__global__ void __launch_bounds__(kThreads, 3) decode(const PagedArgs a, const PagedWork w) {
  using Warp = Decoder<T, C, D>;
  extern __shared__ int prefix[];
  __shared__ Merge<D> merge;
  const int lane = threadIdx.x & 31, g = lane / 4;
  follow();
  work_on(a, w, prefix, [&](const Segment& seg) {
    // The item's heads. Asked for again after the keys, so as to hold no registers meanwhile.
    const auto heads_of = [&](int& first, int& count) {
      const int pieces = w.items / a.key_heads, key_head = seg.item / pieces, piece = seg.item - key_head * pieces;
      first = key_head * a.group + piece * kHeads;
      count = min(kHeads, a.group - piece * kHeads);
      return key_head;
    };
    Warp x;
    {
      int first, count;
      const int key_head = heads_of(first, count);
      const float c = a.scale * 1.4426950408889634f;
      const T* q = reinterpret_cast<const T*>(a.q) + seg.unit.token * a.q_stride + static_cast<int64_t>(first + g) * D;
      x.start(g < count ? q : nullptr, c, lane);
      x.run(a, seg, key_head, c);
    }

    int first_head = 0, heads;
    const auto count_heads = [&] {
      heads_of(first_head, heads);
      return heads;
    };
    x.meet(merge, count_heads, [&](int head, int d, float o, float top, float sum) {
      if (seg.whole) {
        const int64_t row = static_cast<int64_t>(seg.unit.token) * a.heads + first_head + head;
        reinterpret_cast<T*>(a.o)[row * D + d] = from_float<T>(sum == 0.f ? 0.f : __fdividef(o, sum));
      } else {
        const int64_t row = static_cast<int64_t>(seg.place) * kHeads + head;
        w.o[row * D + d] = o;
        if (d == 0) w.ml[row] = make_float2(top, sum);
      }
    });
  });
}

template <class T, class C, int D>
const char* run(Context& ctx, const PagedArgs& a) {
  constexpr int per_sm = 3;
  PagedWork w{};
  w.items = a.key_heads * static_cast<int>(ceil_div(a.group, kHeads));
  w.rows = kHeads;
  w.step = kWarps * Decoder<T, C, D>::kKeys;
  w.least = 1;
  return run_work(ctx, a, w, per_sm, [&](unsigned blocks, const PagedWork& work) {
    launch(ctx, decode<T, C, D>, blocks, kThreads, (work.units + 1) * sizeof(int), a, work);
    return launched();
  });
}

template <class T>
const char* run_width(Context& ctx, const PagedArgs& a) {
  if (a.cache_type == DType::i8) return a.width == 64 ? run<T, int8_t, 64>(ctx, a) : run<T, int8_t, 128>(ctx, a);
  return a.width == 64 ? run<T, T, 64>(ctx, a) : run<T, T, 128>(ctx, a);
}

}  // namespace

const char* paged_decode(Context& ctx, const PagedArgs& a) { return a.type == DType::bf16 ? run_width<bf16>(ctx, a) : run_width<f16>(ctx, a); }

}  // namespace llm::cuda
