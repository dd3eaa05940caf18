// Tests of the allocator on expandable segments, with host memory in place of a card's.
#include "core/arena.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <vector>

#include "core/error.h"

using namespace llm;

namespace {

int passed = 0, failed = 0;

void expect(bool ok, const char* what) {
  if (ok) {
    passed++;
    return;
  }
  failed++;
  printf("FAILED %s\n", what);
}

// Addresses are reserved without access; map() makes them readable up to `capacity` bytes in all.
struct FakePages : PageSource {
  int64_t capacity = 0, mapped = 0;
  int waits = 0;
  std::map<char*, int64_t> live;
  explicit FakePages(int64_t c) : capacity(c) {}
  char* reserve(int64_t bytes) override {
    void* base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw Error(Code::internal, "mmap");
    return static_cast<char*>(base);
  }
  bool map(char* at, int64_t bytes) override {
    if (mapped + bytes > capacity) return false;
    mapped += bytes;
    live[at] = bytes;
    return mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0;
  }
  void unmap(char* at, int64_t bytes) override {
    expect(live.count(at) && live[at] == bytes, "unmap names a range of map");
    live.erase(at);
    mapped -= bytes;
    madvise(at, bytes, MADV_DONTNEED);
    mprotect(at, bytes, PROT_NONE);
  }
  void wait_idle() override { waits++; }
};

constexpr int64_t MiB = int64_t{1} << 20;

bool refuses(ArenaPool& pool, int64_t bytes) {
  try {
    pool.allocate(bytes);
  } catch (const Error& e) {
    return e.code == Code::out_of_memory;
  }
  return false;
}

void reuse_and_joining() {
  FakePages pages(256 * MiB);
  ArenaPool pool(Device::cuda, pages, 1024 * MiB);
  void* a = pool.allocate(20 * MiB);
  void* b = pool.allocate(20 * MiB);
  void* c = pool.allocate(20 * MiB);
  const int64_t mapped = pages.mapped;
  pool.release(a, 20 * MiB);
  pool.release(b, 20 * MiB);
  void* d = pool.allocate(40 * MiB);  // a and b joined
  expect(d == a, "neighbours that are free join");
  expect(pages.mapped == mapped, "joined memory needs no new pages");
  void* e = pool.allocate(40 * MiB);  // uses what is free at the end
  expect(pages.mapped <= mapped + 64 * MiB, "a block may start in the free end");
  for (void* p : {c, d, e}) pool.release(p, 1);
  expect(pool.stats().cached == pages.mapped, "everything is idle");
  pool.trim();
  expect(pages.mapped == 0 && pool.stats().cached == 0, "trim gives all pages back");
  void* f = pool.allocate(3 * MiB);
  std::memset(f, 1, 3 * MiB);
  pool.release(f, 3 * MiB);
}

void small_blocks_live_apart() {
  FakePages pages(256 * MiB);
  ArenaPool pool(Device::cuda, pages, 1024 * MiB);
  void* large = pool.allocate(30 * MiB);
  void* small = pool.allocate(100);
  pool.release(large, 30 * MiB);
  void* larger = pool.allocate(32 * MiB);
  expect(larger == large, "a small block does not split a large range");
  expect(reinterpret_cast<uintptr_t>(small) % 512 == 0, "blocks are aligned to 512 bytes");
  pool.release(small, 100);
  pool.release(larger, 32 * MiB);
}

void full_card() {
  FakePages pages(128 * MiB);
  ArenaPool pool(Device::cuda, pages, 1024 * MiB);
  // Three ranges of 32 MiB in use, free, in use: none holds 60 MiB, but 32 + 32 MiB of pages are there.
  void* a = pool.allocate(32 * MiB);
  void* b = pool.allocate(32 * MiB);
  void* c = pool.allocate(32 * MiB);
  pool.release(b, 32 * MiB);
  void* d = pool.allocate(60 * MiB);
  std::memset(d, 7, 60 * MiB);
  expect(pages.waits == 1, "idle pages move only when nothing queued uses them");
  expect(pages.mapped <= 128 * MiB, "never more than the card has");
  expect(refuses(pool, 40 * MiB), "a full card is a typed error");
  pool.release(a, 32 * MiB);
  void* e = pool.allocate(30 * MiB);
  expect(e != nullptr, "after the error memory can be had again");
  for (void* p : {c, d, e}) pool.release(p, 1);
}

void limit() {
  FakePages pages(256 * MiB);
  ArenaPool pool(Device::cuda, pages, 1024 * MiB);
  pool.set_limit(64 * MiB);
  void* a = pool.allocate(32 * MiB);
  expect(refuses(pool, 64 * MiB) && pages.mapped <= 64 * MiB, "the limit holds");
  pool.release(a, 32 * MiB);
  pool.set_limit(16 * MiB);
  expect(refuses(pool, 32 * MiB), "the limit holds for pages that are mapped already");
}

// Random blocks: none overlaps another, all hold what was written, and the counters agree.
void stress() {
  FakePages pages(512 * MiB);
  ArenaPool pool(Device::cuda, pages, int64_t{8} << 30);
  std::mt19937_64 random(7);
  std::map<char*, std::pair<int64_t, char>> live;
  int refused = 0;
  for (int step = 0; step < 20'000; step++) {
    const bool grow = live.size() < 40 || (live.size() < 120 && random() % 2);
    if (grow) {
      const int64_t bytes = random() % 3 == 0 ? 1 + static_cast<int64_t>(random() % (16 * MiB)) : 1 + static_cast<int64_t>(random() % 70'000);
      char* p = nullptr;
      try {
        p = static_cast<char*>(pool.allocate(bytes));
      } catch (const Error&) {
        refused++;
        continue;
      }
      const auto next = live.lower_bound(p);
      if (next != live.end() && p + bytes > next->first) return expect(false, "blocks overlap");
      if (next != live.begin() && std::prev(next)->first + std::prev(next)->second.first > p) return expect(false, "blocks overlap");
      const char mark = static_cast<char>(step);
      p[0] = p[bytes - 1] = mark;
      live[p] = {bytes, mark};
    } else {
      auto it = live.begin();
      std::advance(it, random() % live.size());
      const auto [bytes, mark] = it->second;
      if (it->first[0] != mark || it->first[bytes - 1] != mark) return expect(false, "a block was written by another");
      pool.release(it->first, bytes);
      live.erase(it);
    }
  }
  for (const auto& [p, info] : live) pool.release(p, info.first);
  expect(pool.stats().cached == pages.mapped, "everything came back");
  pool.trim();
  expect(pages.mapped == 0, "and all pages went back");
  printf("stress: %d allocations refused by the full card\n", refused);
}

void refusal_leaves_the_card_alone() {
  FakePages pages(1024 * MiB);
  ArenaPool pool(Device::cuda, pages, 8192 * MiB);
  void* a = pool.allocate(64 * MiB);
  expect(refuses(pool, 2048 * MiB), "more than the card holds is refused");
  expect(pages.mapped == 64 * MiB, "a refused allocation keeps no pages");
  pool.release(a, 64 * MiB);
}

void addresses_are_used_again() {
  FakePages pages(1024 * MiB);
  ArenaPool pool(Device::cuda, pages, 4096 * MiB);  // four times the card: holes must be filled after a few rounds
  void* kept = nullptr;
  for (int round = 0; round < 50; round++) {
    void* big = pool.allocate(800 * MiB);
    void* next = pool.allocate(2 * MiB);  // lies behind the big one and keeps the end where it is
    pool.release(big, 800 * MiB);
    if (kept) pool.release(kept, 2 * MiB);
    kept = next;
    pool.trim();
  }
  pool.release(kept, 2 * MiB);
  pool.trim();
  expect(pages.mapped == 0, "nothing stays mapped");
  pool.release(pool.allocate(900 * MiB), 900 * MiB);
  expect(true, "an empty card takes a large block");
}

// What another thread frees during the wait may be in use by its queued commands; the rest goes back at once.
void pages_freed_during_the_wait_stay() {
  struct BusyPages : FakePages {
    using FakePages::FakePages;
    std::function<void()> meanwhile;
    void wait_idle() override {
      FakePages::wait_idle();
      if (meanwhile) meanwhile();
    }
  } pages(1024 * MiB);
  ArenaPool pool(Device::cuda, pages, 8192 * MiB);
  void* idle = pool.allocate(320 * MiB);
  void* other = pool.allocate(64 * MiB);
  pool.release(idle, 320 * MiB);
  pages.meanwhile = [&] { pool.release(other, 64 * MiB); };
  pool.trim();
  pages.meanwhile = nullptr;
  expect(pages.waits == 1, "one wait is enough");
  expect(pages.mapped == 64 * MiB, "only what was freed during the wait stays mapped");
  pool.trim();
  expect(pages.mapped == 0, "and goes back with the next");
}

}  // namespace

int main() {
  reuse_and_joining();
  refusal_leaves_the_card_alone();
  addresses_are_used_again();
  pages_freed_during_the_wait_stay();
  small_blocks_live_apart();
  full_card();
  limit();
  stress();
  printf("arena: %d passed, %d failed\n", passed, failed);
  return failed > 0;
}
