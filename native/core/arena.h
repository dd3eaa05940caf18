// A device's main pool on expandable segments: one stretch of reserved addresses, physical pages mapped behind it as it grows, blocks
// cut best-fit from the free ranges and joined again when they are freed. A freed range of any shape is reused, so batches of changing
// size do not fragment the card (the idea of PyTorch's expandable segments, c10/cuda/CUDACachingAllocator.cpp).
#pragma once
#include <atomic>
#include <map>
#include <set>

#include "core/free_ranges.h"
#include "core/memory.h"

namespace llm {

// Addresses and physical memory. A test gives a fake one.
struct PageSource {
  virtual ~PageSource() = default;
  virtual char* reserve(int64_t bytes) = 0;             // throws Error
  virtual bool map(char* at, int64_t bytes) = 0;        // false: no memory left
  virtual void unmap(char* at, int64_t bytes) = 0;      // the range of one map()
  virtual void wait_idle() = 0;                         // until nothing queued touches freed memory any more
};

class Arena {
 public:
  // Grows by multiples of `chunk` bytes; blocks are multiples of 512 bytes.
  Arena(PageSource& pages, int64_t reserve_bytes, int64_t chunk);
  char* take(int64_t bytes);            // null: no free range is large enough
  bool grow(int64_t bytes);             // makes room for a block of `bytes`, at the end or in a hole; false: no memory left, nothing changed
  int64_t give(char* block, bool watching = false);  // frees; returns the block's size. watching: a wait for an idle device is under way
  int64_t unmap_idle();                 // unmaps every chunk that lies in a free range; returns the bytes. The device must be idle
  void forget_fresh() { fresh_.clear(); }
  int64_t mapped() const { return mapped_; }
  int64_t used() const { return used_; }
  bool owns(const void* p) const { return p >= base_ && p < end_; }
  int64_t largest_free() const { return free_.largest(); }

 private:
  PageSource& pages_;
  const int64_t chunk_;
  char *base_, *end_, *limit_;           // reserved from base_ to limit_, mapped (with holes) up to end_
  FreeRanges free_;
  std::map<char*, int64_t> blocks_;      // blocks in use
  std::map<char*, int64_t> chunks_;      // what each map() covered
  std::set<char*> fresh_;                // chunks in which something was freed while a wait was under way
  int64_t mapped_ = 0, used_ = 0;
};

// Small blocks (up to 1 MiB) and large ones live apart, so that a long-lived small one does not split a large range.
class ArenaPool : public MainPool {
 public:
  ArenaPool(Device device, PageSource& pages, int64_t reserve_bytes);
  void* allocate(int64_t bytes) override;
  void release(void* block, int64_t bytes) override;
  void trim() override;
  void trim_later() { trim_wanted_ = true; }  // at the next allocation; from any thread

 private:
  void unmap_when_idle(std::unique_lock<std::mutex>& lock);
  void update_cached() { stats_.cached = small_.mapped() + large_.mapped() - small_.used() - large_.used(); }
  PageSource& pages_;
  Arena small_, large_;
  int waiting_ = 0;  // waits for an idle device under way
  std::atomic<bool> trim_wanted_{false};
};

}  // namespace llm
