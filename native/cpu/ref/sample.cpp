// Sampling kernels: penalties, and drawing a token. Written once for every CPU: passes over the logits (cpu/scan.h, vectorised)
// and an exact sort of the few candidates that matter.
#include <algorithm>
#include <atomic>

#include "core/philox.h"
#include "cpu/ref/ref.h"
#include "cpu/scan.h"

namespace llm {
namespace {

enum Param { temperature, top_k, top_p, min_p, repetition, presence, frequency, param_count = 8 };

// Repetition over prompt and output (a positive logit is divided, a negative one multiplied), then presence and frequency over
// the output only.
const char* apply_penalties(const KernelArgs& k) {
  const Rows logits = rows_of(k.in[0]);
  const int32_t *history = data_of<int32_t>(k.in[1]), *lengths = data_of<int32_t>(k.in[2]), *prompts = data_of<int32_t>(k.in[3]);
  const int64_t width = k.in[1].shape[1];
  const float* params = data_of<float>(k.in[4]);
  for (int64_t b = 0; b < logits.rows; b++) {
    const float* p = params + b * param_count;
    if (p[repetition] == 1 && p[presence] == 0 && p[frequency] == 0) continue;
    if (lengths[b] < 0 || lengths[b] > width) return "history length outside the history";
    const int32_t* row = history + b * width;
    std::vector<int32_t> all(row, row + lengths[b]);
    std::vector<int32_t> output(row + std::min(lengths[b], std::max(0, prompts[b])), row + lengths[b]);
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    if (!all.empty() && (all.front() < 0 || all.back() >= logits.cols)) return "history token outside the vocabulary";
    std::sort(output.begin(), output.end());
    for (int32_t id : all) {
      float v = logits.get(b, id);
      v = v > 0 ? v / p[repetition] : v * p[repetition];
      const auto same = std::equal_range(output.begin(), output.end(), id);
      const float count = static_cast<float>(same.second - same.first);
      if (count > 0) v -= p[frequency] * count + p[presence];
      logits.set(b, id, v);
    }
  }
  return nullptr;
}

// ---- one row -----------------------------------------------------------------------------------------------------------------

void widen(DType type, const char* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] = load_element(from, type, i);
}

bool top(const float* x, int64_t n, float* largest, int32_t* best) {
  bool wrong = false;
  *largest = -kInf;
  *best = 0;
  for (int64_t i = 0; i < n; i++) {
    wrong |= x[i] != x[i] || x[i] == kInf;
    if (x[i] > *largest) {
      *largest = x[i];
      *best = static_cast<int32_t>(i);
    }
  }
  return wrong;
}

double mass(const float* x, int64_t n, float largest, float inverse_temperature) {
  double total = 0;
  for (int64_t i = 0; i < n; i++) total += std::exp((static_cast<double>(x[i]) - largest) * inverse_temperature);
  return total;
}

int64_t collect(const float* x, int64_t n, float low, float high, int32_t* ids) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++)
    if (x[i] >= low && x[i] < high) ids[count++] = static_cast<int32_t>(i);
  return count;
}

constexpr LogitScan scalar_scan = {widen, top, mass, collect};

// The ids of a row by descending logit, equal ones by lower id. Gathered and sorted only as far as they are asked for: by bands
// of logits below the largest, and within a band in growing steps.
class Ranking {
 public:
  Ranking(const LogitScan& scan, const float* row, int64_t n, float largest, double temperature)
      : scan_(scan), row_(row), n_(n), largest_(largest), temperature_(temperature), high_(kInf) {}

  // Is there an i-th id? -inf logits have none.
  bool has(int64_t i) {
    while (i >= static_cast<int64_t>(sorted_))
      if (!extend()) return false;
    return true;
  }
  int32_t id(int64_t i) const { return ids_[static_cast<size_t>(i)]; }
  double weight(int64_t i) const { return std::exp((static_cast<double>(row_[id(i)]) - largest_) / temperature_); }

 private:
  bool extend() {
    const auto before = [this](int32_t a, int32_t b) { return row_[a] != row_[b] ? row_[a] > row_[b] : a < b; };
    while (sorted_ == ids_.size()) {
      if (high_ == kLowest) return false;
      static constexpr double kBands[] = {4, 10, 24};  // natural logarithms of weight below the largest
      const float low = band_ < 3 ? static_cast<float>(largest_ - kBands[band_] * temperature_) : kLowest;
      band_++;
      if (low >= high_ || low < kLowest) continue;
      const size_t old = ids_.size();
      ids_.resize(old + static_cast<size_t>(n_));
      ids_.resize(old + static_cast<size_t>(scan_.collect(row_, n_, low, high_, ids_.data() + old)));
      high_ = low;
    }
    const auto at = [this](size_t i) { return ids_.begin() + static_cast<int64_t>(i); };
    const size_t next = std::min(ids_.size(), std::max<size_t>(sorted_ + 64, sorted_ * 4));
    if (next < ids_.size()) std::nth_element(at(sorted_), at(next), ids_.end(), before);
    std::sort(at(sorted_), at(next), before);
    sorted_ = next;
    return true;
  }

  static constexpr float kLowest = std::numeric_limits<float>::lowest();
  const LogitScan& scan_;
  const float* row_;
  int64_t n_;
  float largest_;
  double temperature_;
  float high_;
  int band_ = 0;
  size_t sorted_ = 0;
  std::vector<int32_t> ids_;
};

// Temperature, then top-k, then top-p (the smallest set whose mass reaches p; the token that crosses is kept), then min-p
// (relative to the most likely token); then the inverse of the cumulative distribution, most likely token first, at
// u = uniform(Philox(seed, counter = step)). The largest logit is `largest`, finite, at `best`.
int32_t draw(const LogitScan& scan, const float* row, int64_t n, float largest, int32_t best, const float* p, uint64_t seed, uint32_t step) {
  if (p[temperature] <= 0) return best;
  Ranking ranking(scan, row, n, largest, p[temperature]);
  int64_t kept = n;
  double total = 0;
  if (p[top_k] >= 1 && static_cast<double>(p[top_k]) < static_cast<double>(n)) {
    kept = 0;
    while (kept < static_cast<int64_t>(p[top_k]) && ranking.has(kept)) total += ranking.weight(kept++);
  } else {
    total = scan.mass(row, n, largest, 1.0f / p[temperature]);
  }
  if (p[top_p] < 1) {
    const double wanted = static_cast<double>(p[top_p]) * total;
    int64_t i = 0;
    for (total = 0; i < kept && (i == 0 || total < wanted) && ranking.has(i); i++) total += ranking.weight(i);
    kept = i;
  }
  if (p[min_p] > 0) {
    int64_t i = 0;
    for (total = 0; i < kept && ranking.has(i) && (i == 0 || ranking.weight(i) >= p[min_p]); i++) total += ranking.weight(i);
    kept = i;
  }
  const double target = static_cast<double>(philox_uniform(philox(seed, step, 0).word[0])) * total;
  double sum = 0;
  int64_t i = 0;
  for (; i < kept && ranking.has(i); i++) {
    sum += ranking.weight(i);
    if (sum > target) return ranking.id(i);
  }
  return i > 0 ? ranking.id(i - 1) : best;
}

const char* sample_with(const KernelArgs& k, const LogitScan& scan) {
  const Rows logits = rows_of(k.in[0]);
  const float* params = data_of<float>(k.in[1]);
  const int32_t *seeds = data_of<int32_t>(k.in[2]), *steps = data_of<int32_t>(k.in[3]);
  int32_t* ids = data_of<int32_t>(k.out[0]);
  float* logprob = data_of<float>(k.out[1]);
  const int64_t n = logits.cols;
  if (n == 0) return logits.rows == 0 ? nullptr : "no logits to sample from";
  std::atomic<const char*> fault{nullptr};
  parallel_rows(logits.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> wide(logits.dtype == DType::f32 ? 0 : static_cast<size_t>(n));
    for (int64_t b = begin; b < end; b++) {
      const float* row = reinterpret_cast<const float*>(logits.data) + logits.at(b);
      if (logits.dtype != DType::f32) {
        scan.widen(logits.dtype, logits.data + logits.at(b) * static_cast<int64_t>(dtype_bytes(logits.dtype)), n, wide.data());
        row = wide.data();
      }
      float largest;
      int32_t best;
      const bool wrong = scan.top(row, n, &largest, &best);
      if (wrong || largest == -kInf) {
        fault = wrong ? "a logit is NaN or +Infinity" : "no token has a finite logit";
        ids[b] = 0;
        logprob[b] = 0;
        continue;
      }
      const uint64_t seed = static_cast<uint32_t>(seeds[2 * b]) | static_cast<uint64_t>(static_cast<uint32_t>(seeds[2 * b + 1])) << 32;
      ids[b] = draw(scan, row, n, largest, best, params + b * param_count, seed, static_cast<uint32_t>(steps[b]));
      logprob[b] = static_cast<float>(static_cast<double>(row[ids[b]]) - largest - std::log(scan.mass(row, n, largest, 1.0f)));
    }
  });
  return fault;
}

const char* sample(const KernelArgs& k) { return sample_with(k, scalar_scan); }

#if defined(__x86_64__)
const char* sample_avx2(const KernelArgs& k) { return sample_with(k, avx2_scan); }
const char* sample_avx512(const KernelArgs& k) { return sample_with(k, avx512_scan); }
#endif

}  // namespace

const KernelEntry ref_sample[] = {{op_apply_penalties, apply_penalties}, {op_sample, sample}};
const int ref_sample_count = sizeof(ref_sample) / sizeof(ref_sample[0]);

#if defined(__x86_64__)
const KernelEntry avx2_sample[] = {{op_sample, sample_avx2}};
const int avx2_sample_count = 1;
const KernelEntry avx512_sample[] = {{op_sample, sample_avx512}};
const int avx512_sample_count = 1;
#endif

}  // namespace llm
