// The attention gradient on Hopper: wgmma fed by the copy engine; bf16 and f16, widths 64 and 128.
//
// Keys pass (backward_hopper_pass.cuh): a block keeps 128 rows of k and v, two warpgroups with 64 each, and runs over 64 queries at a time:
//   s = k q^T, dp = v do^T (both operands in shared memory), then dv += p do and dk += ds q with p and ds straight from the registers.
// The products are queued so that the tensor cores work on dp during the exponentials, on dv during ds; the two warpgroups overlap for the
// rest. The pass also writes ds, rounded to the element type, to scratch ("spill"): computing s and dp again for dq would be two more
// products of five; the spill costs memory traffic that the keys pass hides, and a pass at the memory's speed (backward_hopper_spilled.cuh)
// that multiplies it by k.
//
// The spill is made of blocks of 128 keys x 64 queries, for each head those that the mask leaves, by key tile (Tile::spill) and query.
// A block is two halves of 64 keys; a half is 8 x 8 pieces [key / 8][query / 8] of 8 x 8 elements, queries contiguous: just what a
// warp's registers hold after the product (one 128-byte store a piece), and a layout that wgmma reads.
//
// Only the device knows the lengths of the sequences, so the plan divides the work there (Division): rounds of as many key heads as the
// spill has room for; splits of the keys pass into parts when there are few tiles. The host launches as many rounds as the worst lengths
// would need; those without work return at once. Where even one key head's spill has no room (one very long sequence), the queries pass
// computes the scores again instead.
#include "cuda/attention/backward_hopper_pass.cuh"
#include "cuda/attention/backward_hopper_spilled.cuh"

namespace llm::cuda::gradient {
namespace {

// No fewer blocks than the spill can have per head, whatever the boundaries are: the visible area, and the blocks that its edges cut.
int64_t most_blocks(const Problem& p) {
  const int64_t edge = 2 * (ceil_div(p.queries, kBlock) + ceil_div(p.keys, kKept) + 2 * (p.sequences + 2));
  int64_t area = p.queries * p.keys;
  if (p.causal) {
    const int64_t both = p.queries < p.keys ? p.queries : p.keys;
    area = both * p.keys - both * both / 2;
    if (p.window > 0 && p.queries * p.window < area) area = p.queries * p.window;
  }
  const int64_t all = (ceil_div(p.queries, kBlock) + p.sequences) * (ceil_div(p.keys, kKept) + p.sequences);
  const int64_t bound = ceil_div(area, kBlock * kKept) + edge;
  return all < bound ? all : bound;
}

// Bytes for the spill: about what a layer's activations take.
int64_t spill_room(const Problem& p) {
  const int64_t by_tokens = (p.queries > p.keys ? p.queries : p.keys) << 17, least = int64_t{768} << 20;
  return by_tokens > least ? by_tokens : least;
}

// Starts a kernel of one block per multiprocessor as its predecessor ends (wait_for_previous).
template <class... Parameters, class... Arguments>
const char* launch(Context& ctx, void (*kernel)(Parameters...), int bytes, const Arguments&... arguments) {
  if (const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return cudaGetErrorString(e);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = !ctx.serial;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ctx.sms));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = ctx.stream;
  config.attrs = &early;
  config.numAttrs = 1;
  const cudaError_t e = cudaLaunchKernelEx(&config, kernel, arguments...);
  return e == cudaSuccess ? launched() : cudaGetErrorString(e);
}

struct AllMaps {
  Maps keys, queries;
};

template <class T, int D>
const char* run(Context& ctx, const Problem& p, const AllMaps& maps) {
  const int64_t group = p.heads / p.key_heads, worst = most_blocks(p), room = spill_room(p) / (kSpill * 2);
  Limits limits;
  limits.spill_rows = kBlock;
  limits.spill_blocks = worst * p.heads < room ? worst * p.heads : room;
  limits.sms = ctx.sms;
  const int64_t most_tiles = ceil_div(p.keys, kKept) + p.sequences + 2;
  const int64_t most_parts = most_tiles * p.key_heads * ceil_div(ceil_div(p.queries, kBlock) * group, 2);
  limits.parts = static_cast<int>(most_parts < 3 * ctx.sms ? most_parts : 3 * ctx.sms);
  Plan plan;
  if (const char* e = make_plan(ctx, p, kKept, kQueryRows, kLog2e, limits, plan)) return e;
  Round round{};
  round.spill = ctx.scratch(static_cast<size_t>(limits.spill_blocks) * kSpill * 2);
  round.parts = ctx.scratch_of<float>(static_cast<size_t>(limits.parts) * 2 * kKept * D);

  const int64_t fewest = limits.spill_blocks / (worst * group), groups = fewest < 1 ? 1 : fewest < p.key_heads ? fewest : p.key_heads;
  const int64_t rounds = ceil_div(p.key_heads, groups);
  for (; round.number < rounds; round.number++) {
    if (const char* e = launch(ctx, pass_kernel<T, D, true>, PassLayout<D>::bytes, p, plan, maps.keys, round)) return e;
    if (const char* e = launch(ctx, spilled_kernel<T, D>, SpilledLayout<D>::bytes, p, plan, maps.queries.passing_b, round)) return e;
  }
  if (fewest >= 1) return nullptr;
  return launch(ctx, pass_kernel<T, D, false>, PassLayout<D>::bytes, p, plan, maps.queries, round);
}

}  // namespace

bool hopper_fits(const Context& ctx, const Problem& p) {
  return ctx.arch >= 90 && ctx.arch < 100 && (p.width == 64 || p.width == 128) && p.dtype != DType::f32 && p.queries > 0 && p.keys > 0 &&
         ctx.shared_bytes >= PassLayout<128>::bytes && ctx.shared_bytes >= SpilledLayout<128>::bytes && encode_tiled() != nullptr;
}

const char* hopper(Context& ctx, const Problem& p, const View& grad, const View& q, const View& k, const View& v) {
  AllMaps maps;
  if (!encode_heads(&maps.keys.kept_a, k, kKept) || !encode_heads(&maps.keys.kept_c, v, kKept) || !encode_heads(&maps.keys.passing_b, q, kBlock) ||
      !encode_heads(&maps.keys.passing_d, grad, kBlock) || !encode_heads(&maps.queries.kept_a, q, kKept) ||
      !encode_heads(&maps.queries.kept_c, grad, kKept) || !encode_heads(&maps.queries.passing_b, k, kBlock) ||
      !encode_heads(&maps.queries.passing_d, v, kBlock))
    return tensor_cores_fit(ctx, p) ? tensor_cores(ctx, p) : generic(ctx, p);
  if (p.dtype == DType::bf16) return p.width == 64 ? run<bf16, 64>(ctx, p, maps) : run<bf16, 128>(ctx, p, maps);
  return p.width == 64 ? run<f16, 64>(ctx, p, maps) : run<f16, 128>(ctx, p, maps);
}

}  // namespace llm::cuda::gradient
