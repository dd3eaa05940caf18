#include "core/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/error.h"

namespace llm {

std::atomic<uint64_t> commands_pushed{0}, commands_done{0};

namespace {

// Rounds up to a class: multiples of 64 below 1 KiB, then eight classes per power of two. Waste is at most 12.5 %.
int64_t size_class(int64_t bytes) {
  if (bytes <= 64) return 64;
  if (bytes <= 1024) return (bytes + 63) & ~int64_t{63};
  int shift = 63 - __builtin_clzll(static_cast<uint64_t>(bytes - 1)) - 3;
  if (shift < 6) shift = 6;
  const int64_t step = int64_t{1} << shift;
  return (bytes + step - 1) & ~(step - 1);
}

std::string human(int64_t bytes) {
  char text[32];
  if (bytes >= (int64_t{1} << 30)) snprintf(text, sizeof text, "%.2f GiB", bytes / 1073741824.0);
  else snprintf(text, sizeof text, "%.1f MiB", bytes / 1048576.0);
  return text;
}

std::string advice(Device device, const MemoryStats& s, int64_t wanted) {
  std::string text = std::string("[memory] cannot allocate ") + human(wanted) + " on " + kDeviceNames[static_cast<int>(device)] + ": " +
                     human(s.live_total) + " in use (";
  bool first = true;
  for (int i = 0; i < kTags; i++) {
    if (s.live[i] == 0) continue;
    text += std::string(first ? "" : ", ") + kTagNames[i] + " " + human(s.live[i]);
    first = false;
  }
  text += "), limit " + (s.limit ? human(s.limit) : std::string("none"));
  if (s.cached > 0) text += ", idle " + human(s.cached);
  return text + "; turn down batch tokens, maximum length or KV cache size, use activation checkpointing, or quantize the weights";
}

}  // namespace

void MainPool::set_limit(int64_t bytes) {
  std::lock_guard lock(mutex_);
  stats_.limit = bytes;
}

MemoryStats MainPool::stats() {
  std::lock_guard lock(mutex_);
  return stats_;
}

void MainPool::count(Tag tag, int64_t bytes) {
  std::lock_guard lock(mutex_);
  stats_.live[static_cast<int>(tag)] += bytes;
  stats_.live_total += bytes;
  if (stats_.live_total > stats_.peak) stats_.peak = stats_.live_total;
}

void MainPool::out_of_memory(int64_t wanted) const { throw Error(Code::out_of_memory, advice(device, stats_, wanted)); }

void* HostPool::allocate(int64_t bytes) {
  const int64_t size = size_class(bytes);
  std::unique_lock lock(mutex_);
  const bool over = stats_.limit > 0 && stats_.live_total + size > stats_.limit;
  auto& list = free_[size];
  if (!over && !list.empty()) {
    void* block = list.back();
    list.pop_back();
    stats_.cached -= size;
    return block;
  }
  void* block = over ? nullptr : std::aligned_alloc(64, size);
  if (!block && !over) {  // the system is out: give back what is cached and try again
    free_all(lock);
    block = std::aligned_alloc(64, size);
  }
  if (!block) out_of_memory(bytes);
  return block;
}

void HostPool::release(void* block, int64_t bytes) {
  const int64_t size = size_class(bytes);
  std::lock_guard lock(mutex_);
  while (!doomed_.empty() && doomed_.front().after <= commands_done.load(std::memory_order_acquire)) {
    std::free(doomed_.front().block);
    doomed_.pop_front();
  }
  // Keep at most as much idle memory as is in use, but always a working set of 512 MiB.
  const int64_t keep = stats_.live_total > (int64_t{512} << 20) ? stats_.live_total : int64_t{512} << 20;
  if (stats_.cached + size > keep) {
    doomed_.push_back({block, commands_pushed.load(std::memory_order_acquire)});
    return;
  }
  free_[size].push_back(block);
  stats_.cached += size;
}

// Gives every idle block back to the system. Waits for the queue without the lock, because commands take it.
void HostPool::free_all(std::unique_lock<std::mutex>& lock) {
  std::vector<void*> blocks;
  for (auto& [_, list] : free_) {
    blocks.insert(blocks.end(), list.begin(), list.end());
    list.clear();
  }
  for (const Doomed& d : doomed_) blocks.push_back(d.block);
  doomed_.clear();
  stats_.cached = 0;
  lock.unlock();
  for (const uint64_t last = commands_pushed.load(); commands_done.load(std::memory_order_acquire) < last;) std::this_thread::yield();
  for (void* block : blocks) std::free(block);
  lock.lock();
}

void HostPool::trim() {
  std::unique_lock lock(mutex_);
  free_all(lock);
  stats_.peak = stats_.live_total;
}

HostPool& host_pool() {
  static HostPool* pool = new HostPool;  // never destroyed: storages may outlive static destruction
  return *pool;
}

static std::atomic<MainPool*> device_pool{nullptr};

void set_main_pool(Device, MainPool* pool) { device_pool.store(pool, std::memory_order_release); }

MainPool& main_pool(Device device) {
  if (device == Device::cpu) return host_pool();
  MainPool* pool = device_pool.load(std::memory_order_acquire);
  if (!pool) throw Error(Code::device, "[device] cuda was not opened");
  return *pool;
}

constexpr int64_t kPlanSmall = int64_t{64} << 10, kPlanSlab = int64_t{1} << 20;

PlanPool::~PlanPool() {
  for (auto& [slab, size] : slabs_) {
    base_.count(Tag::workspace, -size);
    base_.release(slab, size);
  }
}

void* PlanPool::allocate(int64_t bytes) {
  const int64_t size = FreeRanges::rounded(bytes);
  std::lock_guard lock(mutex_);
  FreeRanges& free = size <= kPlanSmall ? small_ : large_;
  char* block = free.take(size);
  if (!block) {
    const int64_t slab = std::max(size, kPlanSlab);
    block = static_cast<char*>(base_.allocate(slab));
    slabs_[block] = slab;
    base_.count(Tag::workspace, slab);
    if (slab > size) free.give(block + size, slab - size);
  }
  blocks_[block] = size;
  return block;
}

void PlanPool::release(void* block, int64_t) {
  std::lock_guard lock(mutex_);
  const auto found = blocks_.find(block);
  const int64_t size = found->second;
  blocks_.erase(found);
  (size <= kPlanSmall ? small_ : large_).give(static_cast<char*>(block), size);
}

// A Plan's pool counts its own blocks: they stay in use when the tensors of the recording are gone.
static void count_storage(const Pool* pool, Tag tag, int64_t bytes) {
  if (!pool) host_pool().count(tag, bytes);
  else if (pool->is_main()) static_cast<MainPool*>(const_cast<Pool*>(pool))->count(tag, bytes);
}

void Storage::release() {
  if (refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  count_storage(pool, tag, -bytes);
  if (pool) pool->release(data, bytes);
  delete this;
}

Storage* allocate_storage(int64_t bytes, Tag tag, Pool* pool, std::shared_ptr<void> owner) {
  auto* s = new Storage;
  try {
    s->data = static_cast<char*>(pool->allocate(bytes > 0 ? bytes : 1));
  } catch (...) {
    delete s;
    throw;
  }
  s->bytes = bytes;
  s->tag = tag;
  s->pool = pool;
  s->owner = std::move(owner);
  count_storage(pool, tag, bytes);
  return s;
}

namespace {

struct Mapping {
  char* base = nullptr;
  int64_t size = 0;
  ~Mapping() {
    if (base) munmap(base, size);
  }
};

std::shared_ptr<Mapping> open_mapping(const std::string& path) {
  static std::mutex mutex;
  static auto* open = new std::map<std::string, std::weak_ptr<Mapping>>;
  std::lock_guard lock(mutex);
  struct stat info;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || fstat(fd, &info) != 0) {
    const int e = errno;
    if (fd >= 0) close(fd);
    throw Error(Code::io, "[map_file] cannot open " + path + ": " + std::strerror(e));
  }
  // A replaced file has another inode, and must not be served from the old mapping.
  const std::string key = path + '\0' + std::to_string(info.st_dev) + ':' + std::to_string(info.st_ino) + ':' +
                          std::to_string(info.st_size) + ':' + std::to_string(info.st_mtim.tv_sec) + '.' +
                          std::to_string(info.st_mtim.tv_nsec);
  if (auto found = (*open)[key].lock()) {
    close(fd);
    return found;
  }
  auto mapping = std::make_shared<Mapping>();
  mapping->size = info.st_size;
  if (info.st_size > 0) {
    void* base = mmap(nullptr, info.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    const int e = errno;
    close(fd);
    if (base == MAP_FAILED) throw Error(Code::io, "[map_file] cannot map " + path + ": " + std::strerror(e));
    mapping->base = static_cast<char*>(base);
  } else {
    close(fd);
  }
  for (auto it = open->begin(); it != open->end();) it = it->second.expired() ? open->erase(it) : std::next(it);
  (*open)[key] = mapping;
  return mapping;
}

}  // namespace

Storage* map_file(const std::string& path, int64_t offset, int64_t bytes, Tag tag) {
  auto mapping = open_mapping(path);
  if (offset < 0 || bytes < 0 || offset + bytes > mapping->size) {
    throw Error(Code::io, "[map_file] " + path + " has " + std::to_string(mapping->size) + " bytes, but bytes " +
                              std::to_string(offset) + " to " + std::to_string(offset + bytes) + " were asked for");
  }
  auto* s = new Storage;
  s->data = mapping->base + offset;
  s->bytes = bytes;
  s->tag = tag;
  s->owner = std::move(mapping);
  host_pool().count(tag, bytes);
  return s;
}

}  // namespace llm
