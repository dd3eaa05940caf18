// What contiguous and paged attention share: the same scalar routine over keys, so that both give the same bits.
#pragma once
#include <algorithm>

#include "cpu/ref/ref.h"

namespace llm {
namespace {

// Keys [first, last) that the query at `position` of its sequence sees.
inline void visible_keys(int64_t position, int64_t keys, bool causal, int64_t window, int64_t& first, int64_t& last) {
  last = causal ? std::min(keys, position + 1) : keys;
  first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
}

// Softmax attention of one query row: key(j, d) and value(j, d) give elements as f32. Fills o[width], returns the log-sum-exp
// of the scaled scores. Without keys: o = 0 and -inf.
template <class Query, class Key, class Value>
double attend(Query q, Key key, Value value, int64_t first, int64_t last, int64_t width, double scale, std::vector<double>& scores,
              std::vector<double>& o) {
  o.assign(static_cast<size_t>(width), 0.0);
  if (last <= first) return -std::numeric_limits<double>::infinity();
  scores.resize(static_cast<size_t>(last - first));
  double largest = -std::numeric_limits<double>::infinity(), total = 0;
  for (int64_t j = first; j < last; j++) {
    double s = 0;
    for (int64_t d = 0; d < width; d++) s += static_cast<double>(q(d)) * key(j, d);
    s *= scale;
    scores[static_cast<size_t>(j - first)] = s;
    largest = std::max(largest, s);
  }
  for (int64_t j = first; j < last; j++) {
    const double p = std::exp(scores[static_cast<size_t>(j - first)] - largest);
    total += p;
    for (int64_t d = 0; d < width; d++) o[static_cast<size_t>(d)] += p * value(j, d);
  }
  for (double& v : o) v /= total;
  return largest + std::log(total);
}

// Boundaries of packed sequences: rising, inside [0, tokens].
inline bool valid_boundaries(const int32_t* cu, int64_t sequences, int64_t tokens) {
  if (cu[0] < 0 || cu[sequences] > tokens) return false;
  for (int64_t b = 0; b < sequences; b++)
    if (cu[b] > cu[b + 1]) return false;
  return true;
}

const char* const kBadBoundaries = "sequence boundaries must rise and stay within the tokens";

// Sequence of token t, or -1 for a token outside all of them.
inline int64_t sequence_of(const int32_t* cu, int64_t sequences, int64_t t) {
  for (int64_t b = 0; b < sequences; b++)
    if (t >= cu[b] && t < cu[b + 1]) return b;
  return -1;
}

}  // namespace
}  // namespace llm
