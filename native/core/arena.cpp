#include "core/arena.h"

#include "core/error.h"

namespace llm {
namespace {

constexpr int64_t kSmall = int64_t{1} << 20;
constexpr int64_t kSmallChunk = int64_t{2} << 20, kLargeChunk = int64_t{32} << 20;

int64_t round_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

Arena::Arena(PageSource& pages, int64_t reserve_bytes, int64_t chunk) : pages_(pages), chunk_(chunk) {
  base_ = end_ = pages.reserve(reserve_bytes);
  limit_ = base_ + reserve_bytes;
}

char* Arena::take(int64_t bytes) {
  const int64_t size = FreeRanges::rounded(bytes);
  char* at = free_.take(size);
  if (!at) return nullptr;
  blocks_[at] = size;
  used_ += size;
  return at;
}

bool Arena::grow(int64_t bytes) {
  int64_t need = FreeRanges::rounded(bytes);
  // A free range at the very end counts.
  const auto& ranges = free_.by_address();
  if (!ranges.empty()) {
    const auto last = std::prev(ranges.end());
    if (last->first + last->second == end_) need -= last->second;
  }
  if (need <= 0) return true;
  need = round_up(need, chunk_);
  char* at = end_;
  if (need > limit_ - end_) {  // the addresses at the end are used up: the first hole that is large enough
    at = base_;
    need = round_up(bytes, chunk_);
    auto c = chunks_.begin();
    for (; c != chunks_.end() && c->first - at < need; ++c) at = c->first + c->second;
    if (c == chunks_.end()) return false;
  }
  for (int64_t done = 0; done < need; done += chunk_) {
    if (pages_.map(at + done, chunk_)) continue;
    for (; done > 0; done -= chunk_) pages_.unmap(at + done - chunk_, chunk_);  // nobody has seen these pages
    return false;
  }
  for (int64_t done = 0; done < need; done += chunk_) chunks_[at + done] = chunk_;
  mapped_ += need;
  if (at == end_) end_ += need;
  free_.give(at, need);
  return true;
}

int64_t Arena::give(char* block, bool watching) {
  const auto found = blocks_.find(block);
  const int64_t size = found->second;
  blocks_.erase(found);
  used_ -= size;
  free_.give(block, size);
  if (watching) {
    for (auto c = std::prev(chunks_.upper_bound(block)); c != chunks_.end() && c->first < block + size; ++c) fresh_.insert(c->first);
  }
  return size;
}

int64_t Arena::unmap_idle() {
  int64_t freed = 0;
  const auto ranges = free_.by_address();
  for (const auto& [at, size] : ranges) {
    free_.remove(at, size);
    char* from = at;
    for (auto c = chunks_.lower_bound(at); c != chunks_.end() && c->first + c->second <= at + size;) {
      if (fresh_.count(c->first)) {
        ++c;
        continue;
      }
      if (c->first > from) free_.give(from, c->first - from);
      pages_.unmap(c->first, c->second);
      freed += c->second;
      from = c->first + c->second;
      c = chunks_.erase(c);
    }
    if (from < at + size) free_.give(from, at + size - from);
  }
  end_ = chunks_.empty() ? base_ : std::prev(chunks_.end())->first + std::prev(chunks_.end())->second;
  mapped_ -= freed;
  return freed;
}

ArenaPool::ArenaPool(Device device, PageSource& pages, int64_t reserve_bytes)
    : MainPool(device), pages_(pages), small_(pages, int64_t{8} << 30, kSmallChunk), large_(pages, reserve_bytes, kLargeChunk) {}

void* ArenaPool::allocate(int64_t bytes) {
  Arena& arena = bytes <= kSmall ? small_ : large_;
  std::unique_lock lock(mutex_);
  const auto attempt = [&]() -> char* {
    if (stats_.limit > 0 && small_.used() + large_.used() + bytes > stats_.limit) return nullptr;
    if (char* block = arena.take(bytes)) return block;
    const int64_t chunk = bytes <= kSmall ? kSmallChunk : kLargeChunk;
    if (stats_.limit > 0 && small_.mapped() + large_.mapped() + round_up(bytes, chunk) > stats_.limit) return nullptr;
    return arena.grow(bytes) ? arena.take(bytes) : nullptr;
  };
  if (trim_wanted_.exchange(false)) unmap_when_idle(lock);
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
  (small_.owns(block) ? small_ : large_).give(static_cast<char*>(block), waiting_ > 0);
  update_cached();
}

// The wait happens without the lock, because commands that end take it. What another thread frees meanwhile may still be in use by
// its queued commands: the chunks of it stay.
void ArenaPool::unmap_when_idle(std::unique_lock<std::mutex>& lock) {
  if (waiting_++ == 0) small_.forget_fresh(), large_.forget_fresh();
  lock.unlock();
  pages_.wait_idle();
  lock.lock();
  waiting_--;
  small_.unmap_idle();
  large_.unmap_idle();
  update_cached();
}

void ArenaPool::trim() {
  std::unique_lock lock(mutex_);
  unmap_when_idle(lock);
  stats_.peak = stats_.live_total;
}

}  // namespace llm
