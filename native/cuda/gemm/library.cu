// Products through cuBLASLt: descriptions and algorithms are kept per shape, the algorithm is the fastest of the library's best guesses.
//
// The library thinks in columns. A row-major C [m, n] is a column-major [n, m], so it is asked for C^T = op(B)^T op(A)^T: its "A" is our b,
// its "B" is our a, and a matrix that is stored transposed for us is not for it.
//
// Sums over k that are split among blocks come together in f32 in the workspace, in a fixed order; the other schemes of the library
// (through C, or rounded to its dtype) are not admitted.
//
// Timing happens when a large shape first appears outside of a capture. Choices are shared by all token counts of about the same size
// (eighths of an octave), so that a server with ever new batch sizes does not time for ever, and are kept on disk (tuned.h).
// LLM_CUDA_TUNE=0 takes the library's first guess instead. Everything here runs on the executor thread.
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "cuda/gemm/paths.h"
#include "cuda/gemm/tuned.h"
#include "cuda/lib/cublaslt.h"

namespace llm::cuda {
namespace {

constexpr int kGuesses = 8;
constexpr double kWorthTiming = 134217728.0;  // 2^27 products: below, launching takes longer than computing
constexpr size_t kMostPlans = 4096;
constexpr size_t kMostCopy = size_t{256} << 20;  // scratch memory is kept, so timing must not take much of it

// The longest sums of FP8 products that stay in the tensor cores' own accumulators, which keep fewer bits than f32. Measured against sums
// in double: up to 4,608 terms that adds less than the rounding of the result to bf16 does (1.5e-3 to 2.4e-3 of the rms together), and products
// are 7 to 15 % faster; at 37,888 terms it would be four times as much.
constexpr int64_t kFastDepth = 8192;

cudaDataType_t type_of(DType t) {
  return t == DType::bf16 ? CUDA_R_16BF : t == DType::f16 ? CUDA_R_16F : t == DType::u8 ? CUDA_R_8F_E4M3 : CUDA_R_32F;
}

uint32_t alignment_of(const void* p) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  if (a % 256 == 0) return 256;
  return a % 16 == 0 ? 16 : static_cast<uint32_t>(a & -a);
}

struct Key {
  int64_t m, n, k, lda, ldb, ldc;
  uint32_t align_a, align_b, align_c;
  uint8_t trans_a, trans_b, dtype_ab, dtype_c, bias, beta, unused[6];
  bool operator==(const Key& o) const { return memcmp(this, &o, sizeof(Key)) == 0; }
};
static_assert(sizeof(Key) == 72, "no padding: keys are compared and hashed as bytes");
struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t words[sizeof(Key) / 8], h = 0x9e3779b97f4a7c15;
    memcpy(words, &key, sizeof key);
    for (uint64_t w : words) h = (h ^ w) * 0xff51afd7ed558ccd, h ^= h >> 32;
    return h;
  }
};

Key key_of(const Gemm& g) {
  Key key{};
  key.m = g.m, key.n = g.n, key.k = g.k, key.lda = g.lda, key.ldb = g.ldb, key.ldc = g.ldc;
  key.align_a = alignment_of(g.a), key.align_b = alignment_of(g.b), key.align_c = alignment_of(g.c);
  key.trans_a = g.trans_a, key.trans_b = g.trans_b;
  key.dtype_ab = static_cast<uint8_t>(g.dtype_a), key.dtype_c = static_cast<uint8_t>(g.dtype_c);
  key.bias = g.bias != nullptr, key.beta = g.beta != 0;
  return key;
}

// Rounded up to an eighth of its octave.
int64_t bucket(int64_t n) {
  int64_t eighth = 1;
  while (eighth * 16 <= n) eighth *= 2;
  return ceil_div(n, eighth) * eighth;
}

// The name of a choice. Tokens are the rows of a, which are k in the gradient of a weight (trans_a).
std::string choice_name(const Key& key) {
  // What the rows of an operand are aligned to: "+" is 16 bytes. An algorithm for 8 may fail where there are 2.
  auto rows = [](int64_t ld, uint8_t dtype, uint32_t align) {
    uint64_t bits = align | static_cast<uint64_t>(ld * dtype_bytes(static_cast<DType>(dtype))) | 16;
    bits &= ~bits + 1;
    return bits == 16 ? std::string("+") : std::to_string(bits);
  };
  std::string name = std::to_string(key.trans_a ? key.m : bucket(key.m)) + "x" + std::to_string(key.n) + "x" + std::to_string(key.trans_a ? bucket(key.k) : key.k);
  name += key.trans_a ? " t" : " n";
  name += key.trans_b ? "t " : "n ";
  name += std::string(dtype_name(static_cast<DType>(key.dtype_ab))) + " " + dtype_name(static_cast<DType>(key.dtype_c)) + " ";
  name += rows(key.lda, key.dtype_ab, key.align_a);
  name += rows(key.ldb, key.dtype_ab, key.align_b);
  name += rows(key.ldc, key.dtype_c, key.align_c);
  if (key.bias) name += " bias";
  if (key.beta) name += " add";
  return name;
}

struct Plan {
  const lt::Functions& fn;
  lt::Desc desc = nullptr;
  lt::Layout a = nullptr, b = nullptr, c = nullptr;
  lt::Algo algo{};
  size_t workspace = 0;
  bool usable = false;

  explicit Plan(const lt::Functions& f) : fn(f) {}
  Plan(const Plan&) = delete;
  ~Plan() {
    if (desc) fn.desc_destroy(desc);
    for (lt::Layout layout : {a, b, c})
      if (layout) fn.layout_destroy(layout);
  }
  bool describe(const Gemm& g) {
    auto set = [&](lt::DescAttribute what, auto value) { return fn.desc_set(desc, what, &value, sizeof value) == lt::kSuccess; };
    auto layout = [&](lt::Layout* to, DType t, int64_t rows, int64_t cols, int64_t ld) {
      return fn.layout_create(to, type_of(t), static_cast<uint64_t>(cols), static_cast<uint64_t>(rows), ld) == lt::kSuccess;
    };
    return fn.desc_create(&desc, lt::kCompute32F, CUDA_R_32F) == lt::kSuccess &&
           set(lt::kDescTransA, g.trans_b ? lt::kOpT : lt::kOpN) && set(lt::kDescTransB, g.trans_a ? lt::kOpT : lt::kOpN) &&
           (!g.bias || (set(lt::kDescEpilogue, static_cast<uint32_t>(lt::kEpilogueBias)) && set(lt::kDescBiasPointer, g.bias))) &&
           (g.dtype_a != DType::u8 || (set(lt::kDescScaleModeA, lt::kScaleOuterVector) && set(lt::kDescScaleModeB, lt::kScaleOuterVector) &&
                                       set(lt::kDescScalePointerA, g.scale_b) && set(lt::kDescScalePointerB, g.scale_a) &&
                                       set(lt::kDescFastAccumulation, static_cast<int8_t>(g.dtype_c == DType::bf16 && g.k <= kFastDepth)))) &&
           layout(&a, g.dtype_a, rows_a(g), cols_a(g), g.lda) && layout(&b, g.dtype_b, rows_b(g), cols_b(g), g.ldb) &&
           layout(&c, g.dtype_c, g.m, g.n, g.ldc);
  }
};

class Library {
 public:
  explicit Library(const CublasLtLibrary& library) : fn_(library.fn) {
    if (!library.usable || fn_.create(&handle_) != lt::kSuccess) {
      handle_ = nullptr;
      return;
    }
    const char* tune = getenv("LLM_CUDA_TUNE");
    if (tune && strcmp(tune, "0") == 0) return;
    int device = 0, driver = 0;
    cudaDeviceProp properties;
    if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&properties, device) != cudaSuccess) return;
    cudaDriverGetVersion(&driver);
    choices_ = std::make_unique<TunedChoices>(std::string(properties.name) + "-" + std::to_string(library.version) + "-" + std::to_string(driver));
  }
  bool usable() const { return handle_ != nullptr; }

  bool run(Context& ctx, const Gemm& g, const char** error) {
    *error = nullptr;
    const Key key = key_of(g);
    auto at = plans_.find(key);
    if (at == plans_.end()) {
      if (plans_.size() >= kMostPlans) plans_.clear();
      at = plans_.emplace(key, std::make_unique<Plan>(fn_)).first;
      if ((*error = choose(ctx, g, key, *at->second))) {
        plans_.erase(at);
        return true;
      }
    }
    Plan& plan = *at->second;
    if (!plan.usable) return false;
    if (g.bias) fn_.desc_set(plan.desc, lt::kDescBiasPointer, &g.bias, sizeof g.bias);
    if (g.dtype_a == DType::u8) {
      fn_.desc_set(plan.desc, lt::kDescScalePointerA, &g.scale_b, sizeof g.scale_b);
      fn_.desc_set(plan.desc, lt::kDescScalePointerB, &g.scale_a, sizeof g.scale_a);
    }
    void* workspace = plan.workspace == 0 ? nullptr : plan.workspace <= g.workspace_bytes ? g.workspace : ctx.scratch(plan.workspace);
    const lt::Status status = launch(ctx, g, plan, plan.algo, g.c, workspace, plan.workspace);
    if (status != lt::kSuccess) *error = fn_.status_text(status);
    return true;
  }

 private:
  lt::Status launch(Context& ctx, const Gemm& g, const Plan& plan, const lt::Algo& algo, void* c, void* workspace, size_t workspace_bytes) {
    return fn_.matmul(handle_, plan.desc, &g.alpha, g.b, plan.b, g.a, plan.a, &g.beta, c, plan.c, c, plan.c, &algo, workspace, workspace_bytes, ctx.stream);
  }

  // Fills the plan; `usable` stays false when the library has nothing. An error is one of CUDA's.
  const char* choose(Context& ctx, const Gemm& g, const Key& key, Plan& plan) {
    if (!plan.describe(g)) return nullptr;
    const size_t most_workspace = gemm_workspace_bytes(ctx);
    const std::string name = choice_name(key);
    if (const lt::Algo* known = choices_ ? choices_->find(name) : nullptr) {
      lt::Candidate checked{};
      if (fn_.check(handle_, plan.desc, plan.b, plan.a, plan.c, plan.c, known, &checked) == lt::kSuccess && checked.workspace <= most_workspace) {
        take(plan, *known, checked.workspace);
        return nullptr;
      }
    }
    lt::Candidate guesses[kGuesses];
    const int n = guess(key, plan, most_workspace, guesses);
    if (n == 0) return nullptr;
    int best = 0;
    if (choices_ && n > 1 && static_cast<double>(g.m) * g.n * g.k > kWorthTiming) {
      cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
      cudaStreamIsCapturing(ctx.stream, &capture);
      if (capture == cudaStreamCaptureStatusNone) {
        if (const char* error = time(ctx, g, plan, guesses, n, best)) return error;
        if (best >= 0) choices_->add(name, guesses[best].algo);
        if (best < 0) best = 0;
      }
    }
    take(plan, guesses[best].algo, guesses[best].workspace);
    return nullptr;
  }
  static void take(Plan& plan, const lt::Algo& algo, size_t workspace) {
    plan.algo = algo;
    plan.workspace = workspace;
    plan.usable = true;
  }

  int guess(const Key& key, const Plan& plan, size_t most_workspace, lt::Candidate (&to)[kGuesses]) {
    lt::Preference preference = nullptr;
    if (fn_.preference_create(&preference) != lt::kSuccess) return 0;
    auto set = [&](lt::PreferenceAttribute what, auto value) { fn_.preference_set(preference, what, &value, sizeof value); };
    set(lt::kPrefWorkspace, static_cast<uint64_t>(most_workspace));
    set(lt::kPrefReduction, lt::kReductionF32);
    set(lt::kPrefAlignA, key.align_b);
    set(lt::kPrefAlignB, key.align_a);
    set(lt::kPrefAlignC, key.align_c);
    set(lt::kPrefAlignD, key.align_c);
    int found = 0;
    const lt::Status status = fn_.heuristic(handle_, plan.desc, plan.b, plan.a, plan.c, plan.c, preference, kGuesses, to, &found);
    fn_.preference_destroy(preference);
    if (status != lt::kSuccess) return 0;
    int n = 0;
    for (int i = 0; i < found; i++)
      if (to[i].state == lt::kSuccess) to[n++] = to[i];
    return n;
  }

  // best = the fastest guess, or -1 when finding out would take too much memory. With beta = 0 the runs write the same C that the caller asked
  // for; otherwise they write a copy.
  const char* time(Context& ctx, const Gemm& g, const Plan& plan, const lt::Candidate* guesses, int n, int& best) {
    best = -1;
    size_t most = 0;
    for (int i = 0; i < n; i++) most = guesses[i].workspace > most ? guesses[i].workspace : most;
    void *workspace = nullptr, *c = g.c;
    const size_t copy = g.beta == 0 ? 0 : static_cast<size_t>((g.m - 1) * g.ldc + g.n) * dtype_bytes(g.dtype_c);
    if (copy > kMostCopy) return nullptr;
    try {
      if (most) workspace = ctx.scratch(most);
      if (copy) c = ctx.scratch(copy);
    } catch (...) {
      return nullptr;
    }
    if (!begin_ && (cudaEventCreate(&begin_) != cudaSuccess || cudaEventCreate(&end_) != cudaSuccess)) return "the events for timing could not be made";
    // Milliseconds a run, negative when this algorithm does not run.
    auto measure = [&](const lt::Candidate& guess, int runs) {
      float ms = -1;
      cudaEventRecord(begin_, ctx.stream);
      for (int r = 0; r < runs; r++)
        if (launch(ctx, g, plan, guess.algo, c, workspace, most) != lt::kSuccess) return -1.f;
      cudaEventRecord(end_, ctx.stream);
      if (cudaEventSynchronize(end_) != cudaSuccess || cudaEventElapsedTime(&ms, begin_, end_) != cudaSuccess) return -1.f;
      return ms / runs;
    };
    // All once, then the best three in turns: the clock falls as the chip warms up, which must not favour who comes first.
    float ms[kGuesses];
    for (int i = 0; i < n; i++) {
      ms[i] = measure(guesses[i], 1);  // loads the kernel
      if (ms[i] >= 0) ms[i] = measure(guesses[i], 2);
    }
    int order[kGuesses], finalists = 0;
    for (int i = 0; i < n; i++)
      if (ms[i] >= 0) order[finalists++] = i;
    const int ran = finalists;
    finalists = std::min(ran, 3);
    std::partial_sort(order, order + finalists, order + ran, [&](int x, int y) { return ms[x] < ms[y]; });
    float total[3] = {};
    for (int round = 0; round < 3; round++)
      for (int i = 0; i < finalists; i++) {
        const float once = ms[order[i]], part = measure(guesses[order[i]], once > 0.5f ? 2 : once > 0.05f ? 5 : 20);
        total[i] += part < 0 ? 1e30f : part;
      }
    for (int i = 0; i < finalists; i++)
      if (best < 0 || total[i] < total[best]) best = i;
    if (best >= 0) best = order[best];
    return launched();
  }

  const lt::Functions& fn_;
  lt::Handle handle_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::unique_ptr<TunedChoices> choices_;  // null: no timing
  std::unordered_map<Key, std::unique_ptr<Plan>, KeyHash> plans_;
};

// Never destroyed: at exit the driver may be gone before it.
Library& library() {
  static Library* one = new Library(cublaslt_library());
  return *one;
}

}  // namespace

bool library_present() { return library().usable(); }

bool library_gemm(Context& ctx, const Gemm& g, const char** error) { return library().run(ctx, g, error); }

}  // namespace llm::cuda
