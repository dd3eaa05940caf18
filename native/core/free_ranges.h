// Free ranges of memory: best fit, cut on taking, joined with their neighbours on giving back.
#pragma once
#include <cstdint>
#include <map>
#include <set>

namespace llm {

class FreeRanges {
 public:
  static constexpr int64_t kAlign = 512;
  static int64_t rounded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

  char* take(int64_t size);  // the beginning of the smallest range that holds `size` bytes, a multiple of kAlign; null: none does
  void give(char* at, int64_t size);
  void remove(char* at, int64_t size);  // exactly this range
  const std::map<char*, int64_t>& by_address() const { return ranges_; }
  int64_t largest() const { return sizes_.empty() ? 0 : sizes_.rbegin()->first; }

 private:
  std::map<char*, int64_t> ranges_;
  std::set<std::pair<int64_t, char*>> sizes_;
};

}  // namespace llm
