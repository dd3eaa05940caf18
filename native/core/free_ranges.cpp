#include "core/free_ranges.h"

namespace llm {

char* FreeRanges::take(int64_t size) {
  const auto found = sizes_.lower_bound({size, nullptr});
  if (found == sizes_.end()) return nullptr;
  const auto [length, at] = *found;
  remove(at, length);
  if (length > size) give(at + size, length - size);
  return at;
}

void FreeRanges::give(char* at, int64_t size) {
  auto next = ranges_.lower_bound(at);
  if (next != ranges_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == at) {
      at = before->first;
      size += before->second;
      remove(before->first, before->second);
    }
  }
  if (next != ranges_.end() && at + size == next->first) {
    size += next->second;
    remove(next->first, next->second);
  }
  ranges_[at] = size;
  sizes_.insert({size, at});
}

void FreeRanges::remove(char* at, int64_t size) {
  ranges_.erase(at);
  sizes_.erase({size, at});
}

}  // namespace llm
