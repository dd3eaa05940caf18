#include "core/arena.h"

#include "core/error.h"

namespace llm {
namespace {

constexpr int64_t kAlign = 512, kSmall = int64_t{1} << 20;
constexpr int64_t kSmallChunk = int64_t{2} << 20, kLargeChunk = int64_t{32} << 20;

int64_t round_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Arena::Arena(PageSource& pages, int64_t reserve_bytes, int64_t chunk) : pages_(pages), chunk_(chunk) {
  base_ = end_ = pages.reserve(reserve_bytes);
  limit_ = base_ + reserve_bytes;
}

void Arena::insert_free(char* at, int64_t size) {
  auto next = ranges_.lower_bound(at);
  if (next != ranges_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == at) {
      at = before->first;
      size += before->second;
      free_.erase({before->second, before->first});
      ranges_.erase(before);
    }
  }
  if (next != ranges_.end() && at + size == next->first) {
    size += next->second;
    free_.erase({next->second, next->first});
    ranges_.erase(next);
  }
  ranges_[at] = size;
  free_.insert({size, at});
}

void Arena::erase_free(char* at, int64_t size) {
  ranges_.erase(at);
  free_.erase({size, at});
}

char* Arena::take(int64_t bytes) {
  const int64_t size = round_up(bytes, kAlign);
  const auto found = free_.lower_bound({size, nullptr});
  if (found == free_.end()) return nullptr;
  const auto [length, at] = *found;
  erase_free(at, length);
  if (length > size) insert_free(at + size, length - size);
  blocks_[at] = size;
  used_ += size;
  return at;
}

bool Arena::grow(int64_t bytes) {
  int64_t need = round_up(bytes, kAlign);
  // A free range at the very end counts.
  if (!ranges_.empty()) {
    const auto last = std::prev(ranges_.end());
    if (last->first + last->second == end_) need -= last->second;
  }
  for (; need > 0; need -= chunk_) {
    if (end_ + chunk_ > limit_ || !pages_.map(end_, chunk_)) return false;
    chunks_[end_] = chunk_;
    mapped_ += chunk_;
    end_ += chunk_;
    insert_free(end_ - chunk_, chunk_);
  }
  return true;
}

int64_t Arena::give(char* block) {
  const auto found = blocks_.find(block);
  const int64_t size = found->second;
  blocks_.erase(found);
  used_ -= size;
  insert_free(block, size);
  return size;
}

int64_t Arena::unmap_idle() {
  int64_t freed = 0;
  const auto ranges = ranges_;
  for (const auto& [at, size] : ranges) {
    // Whole chunks inside [at, at + size).
    auto first = chunks_.lower_bound(at), last = first;
    char* begin = nullptr;
    char* stop = nullptr;
    while (last != chunks_.end() && last->first + last->second <= at + size) {
      if (!begin) begin = last->first;
      pages_.unmap(last->first, last->second);
      stop = last->first + last->second;
      freed += last->second;
      last = chunks_.erase(last);
    }
    if (!begin) continue;
    erase_free(at, size);
    if (begin > at) insert_free(at, begin - at);
    if (stop < at + size) insert_free(stop, at + size - stop);
    if (stop == end_) end_ = begin;  // the addresses at the end can be used again; a hole in the middle cannot
  }
  mapped_ -= freed;
  return freed;
}

ArenaPool::ArenaPool(Device device, PageSource& pages, int64_t reserve_bytes)
    : MainPool(device), pages_(pages), small_(pages, int64_t{8} << 30, kSmallChunk), large_(pages, reserve_bytes, kLargeChunk) {}

void* ArenaPool::allocate(int64_t bytes) {
  Arena& arena = bytes <= kSmall ? small_ : large_;
  std::unique_lock lock(mutex_);
  const auto attempt = [&]() -> char* {
    if (char* block = arena.take(bytes)) return block;
    const int64_t chunk = bytes <= kSmall ? kSmallChunk : kLargeChunk;
    if (stats_.limit > 0 && small_.mapped() + large_.mapped() + round_up(bytes, chunk) > stats_.limit) return nullptr;
    return arena.grow(bytes) ? arena.take(bytes) : nullptr;
  };
  char* block = attempt();
  if (!block) {
    // What lies idle in ranges too small for this block goes back to the card, and new pages take its place.
    unmap_when_idle(lock);
    block = attempt();
  }
  update_cached();
  if (!block) out_of_memory(bytes);
  return block;
}

void ArenaPool::release(void* block, int64_t) {
  std::lock_guard lock(mutex_);
  (small_.owns(block) ? small_ : large_).give(static_cast<char*>(block));
  releases_++;
  update_cached();
}

// The wait happens without the lock, because commands that end take it. What another thread frees meanwhile may still be in use by
// its queued commands: then the wait starts again.
void ArenaPool::unmap_when_idle(std::unique_lock<std::mutex>& lock) {
  for (int attempt = 0; attempt < 16; attempt++) {
    const uint64_t before = releases_;
    lock.unlock();
    pages_.wait_idle();
    lock.lock();
    if (releases_ != before) continue;
    small_.unmap_idle();
    large_.unmap_idle();
    update_cached();
    return;
  }
}

void ArenaPool::trim() {
  std::unique_lock lock(mutex_);
  unmap_when_idle(lock);
  stats_.peak = stats_.live_total;
}

}  // namespace llm
