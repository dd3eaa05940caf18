// Sampling kernels: penalties, and drawing a token. Written once for every CPU: the work is a pass over the logits and an exact
// sort of the few candidates that matter.
#include <algorithm>
#include <atomic>

#include "core/philox.h"
#include "cpu/ref/ref.h"

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

struct Candidate {
  float logit;
  int32_t id;
};

bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// Candidates in descending order, sorted only as far as they are asked for.
class Ranking {
 public:
  explicit Ranking(std::vector<Candidate>& all) : all_(all) {}
  const Candidate& at(size_t i) {
    if (i >= sorted_) {
      const size_t next = std::min(all_.size(), std::max<size_t>(64, sorted_ * 4));
      if (next < all_.size())
        std::nth_element(all_.begin() + static_cast<int64_t>(sorted_), all_.begin() + static_cast<int64_t>(next), all_.end(), before);
      std::sort(all_.begin() + static_cast<int64_t>(sorted_), all_.begin() + static_cast<int64_t>(next), before);
      sorted_ = next;
    }
    return all_[i];
  }

 private:
  std::vector<Candidate>& all_;
  size_t sorted_ = 0;
};

// Temperature, then top-k, then top-p (the smallest set whose mass reaches p; the token that crosses is kept), then min-p
// (relative to the most likely token); then the inverse of the cumulative distribution, most likely token first, at
// u = uniform(Philox(seed, counter = step)). The largest logit is `largest`, finite, at `best`.
int32_t draw(const std::vector<float>& row, float largest, int32_t best, const float* p, uint64_t seed, uint32_t step) {
  if (p[temperature] <= 0) return best;
  const double t = p[temperature];
  std::vector<Candidate> all;
  all.reserve(row.size());
  for (size_t c = 0; c < row.size(); c++)
    if (row[c] != -kInf) all.push_back({row[c], static_cast<int32_t>(c)});
  const auto weight = [&](float logit) { return std::exp((static_cast<double>(logit) - largest) / t); };
  Ranking ranking(all);
  size_t kept = all.size();
  if (p[top_k] >= 1 && static_cast<double>(p[top_k]) < static_cast<double>(kept)) kept = static_cast<size_t>(p[top_k]);
  double mass = 0;
  if (kept < all.size()) {
    for (size_t i = 0; i < kept; i++) mass += weight(ranking.at(i).logit);
  } else {
    for (const Candidate& c : all) mass += weight(c.logit);
  }
  if (p[top_p] < 1) {
    const double wanted = static_cast<double>(p[top_p]) * mass;
    double above = 0;
    size_t i = 0;
    while (i < kept && (i == 0 || above < wanted)) above += weight(ranking.at(i++).logit);
    kept = i;
    mass = above;
  }
  if (p[min_p] > 0) {
    double above = 0;
    size_t i = 0;
    while (i < kept && (i == 0 || weight(ranking.at(i).logit) >= p[min_p])) above += weight(ranking.at(i++).logit);
    kept = i;
    mass = above;
  }
  const double target = static_cast<double>(philox_uniform(philox(seed, step, 0).word[0])) * mass;
  double sum = 0;
  for (size_t i = 0; i < kept; i++) {
    sum += weight(ranking.at(i).logit);
    if (sum > target) return ranking.at(i).id;
  }
  return ranking.at(kept - 1).id;
}

const char* sample(const KernelArgs& k) {
  const Rows logits = rows_of(k.in[0]);
  const float* params = data_of<float>(k.in[1]);
  const int32_t *seeds = data_of<int32_t>(k.in[2]), *steps = data_of<int32_t>(k.in[3]);
  int32_t* ids = data_of<int32_t>(k.out[0]);
  float* logprob = data_of<float>(k.out[1]);
  if (logits.cols == 0) return logits.rows == 0 ? nullptr : "no logits to sample from";
  std::atomic<const char*> fault{nullptr};
  parallel_rows(logits.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(logits.cols));
    for (int64_t b = begin; b < end; b++) {
      float largest = -kInf;
      int32_t best = 0;
      bool wrong = false;
      for (int64_t c = 0; c < logits.cols; c++) {
        const float v = row[static_cast<size_t>(c)] = logits.get(b, c);
        wrong |= v != v || v == kInf;
        if (v > largest) {
          largest = v;
          best = static_cast<int32_t>(c);
        }
      }
      if (wrong || largest == -kInf) {
        fault = wrong ? "a logit is NaN or +Infinity" : "no token has a finite logit";
        ids[b] = 0;
        logprob[b] = 0;
        continue;
      }
      const uint64_t seed = static_cast<uint32_t>(seeds[2 * b]) | static_cast<uint64_t>(static_cast<uint32_t>(seeds[2 * b + 1])) << 32;
      ids[b] = draw(row, largest, best, params + b * param_count, seed, static_cast<uint32_t>(steps[b]));
      double total = 0;
      for (float v : row) total += std::exp(static_cast<double>(v) - largest);
      logprob[b] = static_cast<float>(static_cast<double>(row[static_cast<size_t>(ids[b])]) - largest - std::log(total));
    }
  });
  return fault;
}

}  // namespace

const KernelEntry ref_sample[] = {{op_apply_penalties, apply_penalties}, {op_sample, sample}};
const int ref_sample_count = sizeof(ref_sample) / sizeof(ref_sample[0]);

}  // namespace llm
