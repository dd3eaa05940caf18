// Memory: blocks come from a pool (a device's main pool, or a Plan's private pool on top of it), are owned by a Storage and freed when
// its last reference goes. Counters by tag feed memory() and the out-of-memory message.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/free_ranges.h"

namespace llm {

enum class Tag : uint8_t { other, weights, gradients, optimizer, activations, kv, workspace };
constexpr int kTags = 7;
constexpr const char* kTagNames[kTags] = {"other", "weights", "gradients", "optimizer", "activations", "kv", "workspace"};

struct MemoryStats {
  int64_t live[kTags] = {};  // bytes in use by tag
  int64_t live_total = 0, peak = 0, cached = 0, limit = 0;
};

// How many commands have been handed to the executor, and how many it has finished. A block that is freed while commands that
// touch it are still queued may be given out again at once, because whoever gets it touches it by later commands only; but it may go
// back to the system only after those have run.
extern std::atomic<uint64_t> commands_pushed, commands_done;

// Where memory is: the host, or the device of the plugin that was opened.
enum class Device : uint8_t { cpu, cuda };
constexpr int kDevices = 2;
constexpr const char* kDeviceNames[kDevices] = {"cpu", "cuda"};

// Where blocks come from. Thread-safe.
class Pool {
 public:
  explicit Pool(Device d) : device(d) {}
  virtual ~Pool() = default;
  virtual void* allocate(int64_t bytes) = 0;  // 64-byte aligned; throws Error(out_of_memory)
  virtual void release(void* block, int64_t bytes) = 0;
  virtual bool is_main() const { return false; }
  const Device device;
};

// A device's own pool: counts what is in use by tag and holds it under a limit.
class MainPool : public Pool {
 public:
  using Pool::Pool;
  bool is_main() const override { return true; }
  virtual void trim() = 0;  // gives all idle memory back to the system, after the queue has run; the peak starts anew
  void set_limit(int64_t bytes);
  MemoryStats stats();
  void count(Tag tag, int64_t bytes);  // bytes < 0 = freed

 protected:
  [[noreturn]] void out_of_memory(int64_t wanted) const;  // with mutex_ held
  std::mutex mutex_;
  MemoryStats stats_;
};

// Size-class cache over aligned_alloc: keeps freed blocks for the next step instead of paying page faults again.
class HostPool : public MainPool {
 public:
  HostPool() : MainPool(Device::cpu) {}
  void* allocate(int64_t bytes) override;
  void release(void* block, int64_t bytes) override;
  void trim() override;

 private:
  void free_all(std::unique_lock<std::mutex>& lock);

  struct Doomed {
    void* block;
    uint64_t after;  // commands that must have run before it is freed
  };
  std::unordered_map<int64_t, std::vector<void*>> free_;
  std::deque<Doomed> doomed_;
};

HostPool& host_pool();
MainPool& main_pool(Device device);                 // throws Error(device) when that device was not opened
void set_main_pool(Device device, MainPool* pool);  // once, when a plugin is opened

// A Plan's private memory: what the recording frees, later commands of it use again, cut and joined as it fits. Slabs of the main pool,
// counted as workspace for as long as the Plan lives. Small and large blocks have slabs of their own, as in ArenaPool.
class PlanPool : public Pool {
 public:
  explicit PlanPool(MainPool& base) : Pool(base.device), base_(base) {}
  ~PlanPool() override;
  void* allocate(int64_t bytes) override;
  void release(void* block, int64_t bytes) override;

 private:
  MainPool& base_;
  std::mutex mutex_;
  FreeRanges small_, large_;
  std::unordered_map<void*, int64_t> slabs_, blocks_;  // address -> size
};

// Reference-counted bytes. `pool` is null for memory mapped from a file.
struct Storage {
  std::atomic<int> refs{1};
  char* data = nullptr;
  int64_t bytes = 0;
  Tag tag = Tag::other;
  std::atomic<uint64_t> last_use{0};  // sequence number of the last queued command that touches it
  Pool* pool = nullptr;
  std::shared_ptr<void> owner;  // keeps the pool (Plan) or the file mapping alive

  Device device() const { return pool ? pool->device : Device::cpu; }
  void retain() { refs.fetch_add(1, std::memory_order_relaxed); }
  void release();
};

Storage* allocate_storage(int64_t bytes, Tag tag, Pool* pool, std::shared_ptr<void> owner);
// Maps `bytes` at `offset` of a file, private and writable (copy on write). One mapping a file, shared while in use.
Storage* map_file(const std::string& path, int64_t offset, int64_t bytes, Tag tag);

}  // namespace llm
