#include "core/device.h"

#include <dlfcn.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "core/arena.h"
#include "core/error.h"
#include "core/executor.h"
#include "core/threadpool.h"
#include "gen/ops.h"

namespace llm {
namespace {

constexpr int64_t kChunk = int64_t{16} << 20;          // a transfer goes through pinned memory in pieces of this size
constexpr int64_t kPinnedInFlight = int64_t{128} << 20;  // a faster host waits for the device here

const PluginApi* plugin = nullptr;

[[noreturn]] void fail(const char* what, const char* why) {
  if (why == plugin->out_of_memory) {
    auto& pool = static_cast<ArenaPool&>(main_pool(Device::cuda));
    pool.trim_later();  // scratch space comes from the card itself: the next attempt shall find some
    const MemoryStats s = pool.stats();
    throw Error(Code::out_of_memory, std::string("[memory] cuda has no room for the scratch space of ") + what + ": " +
                                         std::to_string(s.live_total >> 20) + " MiB in use; turn down batch tokens or set a memory limit");
  }
  if (const char* broken = plugin->broken()) {
    throw Error(Code::device, std::string("[device] cuda failed in ") + what + ": " + broken + "; the device cannot be used any more by this process");
  }
  throw Error(Code::unsupported, std::string("[") + what + "] " + why);
}

void check(const char* what, const char* why) {
  if (why) fail(what, why);
}

// Page-locked host memory, cached by powers of two.
class Pinned {
 public:
  char* take(int64_t bytes) {
    const int64_t size = size_of(bytes);
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return in_flight_ == 0 || in_flight_ + size <= kPinnedInFlight; });
    in_flight_ += size;
    auto& list = free_[size];
    if (!list.empty()) {
      char* block = list.back();
      list.pop_back();
      return block;
    }
    lock.unlock();
    void* block = nullptr;
    if (const char* why = plugin->pinned(static_cast<uint64_t>(size), &block)) {
      leave(size);
      fail("pinned host memory", why);
    }
    return static_cast<char*>(block);
  }
  void give(char* block, int64_t bytes) {
    const int64_t size = size_of(bytes);
    {
      std::lock_guard lock(mutex_);
      free_[size].push_back(block);
    }
    leave(size);
  }

 private:
  void leave(int64_t size) {
    {
      std::lock_guard lock(mutex_);
      in_flight_ -= size;
    }
    room_.notify_all();
  }
  static int64_t size_of(int64_t bytes) {
    int64_t size = 4096;
    while (size < bytes) size *= 2;
    return size;
  }
  std::mutex mutex_;
  std::condition_variable room_;
  std::map<int64_t, std::vector<char*>> free_;
  int64_t in_flight_ = 0;
};

Pinned& pinned() {
  static Pinned* p = new Pinned;
  return *p;
}

// A block of it until the device is done with it; `queue` starts the transfer.
template <class Queue>
void with_pinned(int64_t bytes, Queue queue) {
  char* block = pinned().take(bytes);
  try {
    queue(block);
  } catch (...) {
    plugin->synchronize();  // the transfer may have begun
    pinned().give(block, bytes);
    throw;
  }
}

// Waits for events in the order in which they were recorded and then acts.
class Completions {
 public:
  void push(std::function<void(const char* why)> act) {
    void* event = nullptr;
    check("an event", plugin->record(&event));
    enqueue(event, std::move(act));
  }
  void drain() {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return queue_.empty() && !acting_; });
  }
  // Without an event: as soon as those before it are done.
  void push_after(std::function<void(const char* why)> act) { enqueue(nullptr, std::move(act)); }

 private:
  void enqueue(void* event, std::function<void(const char* why)> act) {
    std::lock_guard lock(mutex_);
    if (!started_) {
      started_ = true;
      std::thread([this] { loop(); }).detach();
    }
    queue_.push_back({event, std::move(act)});
    wake_.notify_one();
  }

  struct Job {
    void* event;
    std::function<void(const char* why)> act;
  };
  void loop() {
    for (;;) {
      Job job;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return !queue_.empty(); });
        job = std::move(queue_.front());
        queue_.pop_front();
        acting_ = true;
      }
      const char* why = job.event ? plugin->wait(job.event) : nullptr;
      if (job.event) plugin->drop(job.event);
      job.act(why);
      std::lock_guard lock(mutex_);
      acting_ = false;
      idle_.notify_all();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::deque<Job> queue_;
  bool started_ = false, acting_ = false;
};

Completions& completions() {
  static Completions* c = new Completions;
  return *c;
}

void note_failure(uint32_t owner, const char* what, const char* why) {
  try {
    fail(what, why);
  } catch (const Error& e) {
    executor().note_error(owner, e.code, e.what());
  }
}

void note_fault(uint32_t owner, int32_t code) {
  if (code == 0) return;
  int op = 0;
  const char* text = "";
  plugin->fault_text(code, &op, &text);
  executor().note_error(owner, Code::numeric, std::string("[") + kOps[op].name + "] " + text);
}

// Notes what bad data the device has met since the last time, and then calls `done`.
void collect_fault(uint32_t owner, std::function<void()> done) {
  with_pinned(4, [&](char* word) {
    check("a download", plugin->take_fault(reinterpret_cast<int32_t*>(word)));
    completions().push([word, owner, done](const char* why) {
      if (why) note_failure(owner, "queued work", why);
      else note_fault(owner, *reinterpret_cast<int32_t*>(word));
      pinned().give(word, 4);
      done();
    });
  });
}

struct DevicePages : PageSource {
  char* reserve(int64_t bytes) override {
    void* base = nullptr;
    if (const char* why = plugin->reserve(static_cast<uint64_t>(bytes), &base)) {
      throw Error(Code::device, std::string("[device] cuda: no address space: ") + why);
    }
    return static_cast<char*>(base);
  }
  bool map(char* at, int64_t bytes) override { return plugin->map(at, static_cast<uint64_t>(bytes)) == nullptr; }
  void unmap(char* at, int64_t bytes) override { plugin->unmap(at, static_cast<uint64_t>(bytes)); }
  void wait_idle() override {
    Command c;
    c.callback = [] { plugin->synchronize(); };
    const uint64_t seq = executor().push(std::move(c));
    executor().wait(seq);
  }
};

// At the end of the process: neither thread of ours uses the device while the CUDA libraries' own handlers take it down. JavaScript has
// waited for the queue by then (finish() in core/src/native.ts); this is for what its worker threads queued after that. Handlers run
// in reverse order, so this one is registered again after the first run of each op, which may have loaded a library.
void settle() {
  executor().park();
  plugin->synchronize();
  completions().drain();
}

void copy_to_pinned(char* to, const char* from, int64_t bytes) {
  cpu::parallel_for(bytes, int64_t{1} << 20, [&](int64_t begin, int64_t end) { std::memcpy(to + begin, from + begin, end - begin); });
}

}  // namespace

void open_device(const std::string& path, int ordinal) {
  static std::mutex mutex;
  static int opened = -1;
  std::lock_guard lock(mutex);
  if (plugin) {
    if (ordinal == opened) return;
    throw Error(Code::device, "[device] cuda: card " + std::to_string(opened) + " is open in this process, card " + std::to_string(ordinal) + " was asked for");
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw Error(Code::device, std::string("[device] the cuda plugin could not be opened: ") + dlerror());
  const auto entry = reinterpret_cast<PluginEntry>(dlsym(library, "llm_plugin"));
  if (!entry) throw Error(Code::device, "[device] " + path + " is no plugin of this core");
  const PluginApi* api = entry();
  if (api->abi != kPluginAbi || api->op_abi != kAbi) throw Error(Code::device, "[device] " + path + " was built for another version of the core; build both again");
  if (const char* why = api->open(ordinal)) throw Error(Code::device, std::string("[device] cuda: ") + why);
  plugin = api;
  uint64_t free_bytes = 0, total = 0;
  api->memory_info(&free_bytes, &total);
  try {
    // Holes in the addresses are filled only when the rest is used up, so there are many more addresses than memory.
    set_main_pool(Device::cuda, new ArenaPool(Device::cuda, *new DevicePages, static_cast<int64_t>((total >> 30) + 1) << 33));
  } catch (...) {
    plugin = nullptr;
    throw;
  }
  opened = ordinal;
  std::atexit(settle);
}

const PluginApi* device_api() { return plugin; }

namespace {

// Runs command `at` of `n` and what the plugin takes along with it; returns how many that are.
int run_from(const PluginCommand* commands, int n, int at) {
  static bool ran[op_count] = {};
  const int op = commands[at].op;
  int taken = 0;
  check(kOps[op].name, plugin->run(commands, n, at, &taken));
  if (taken == 1 && !std::exchange(ran[op], true)) std::atexit(settle);
  return taken;
}

}  // namespace

void device_run(int op, const KernelArgs& args) {
  const PluginCommand alone{op, args};
  run_from(&alone, 1, 0);
}

void device_upload(char* to, const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kChunk) {
    const int64_t n = std::min(kChunk, bytes - at);
    with_pinned(n, [&](char* block) {
      copy_to_pinned(block, from + at, n);
      check("an upload", plugin->upload(to + at, block, static_cast<uint64_t>(n)));
      completions().push([block, n](const char*) { pinned().give(block, n); });
    });
  }
}

void device_copy(char* to, const char* from, int64_t bytes) { check("a copy", plugin->copy(to, from, static_cast<uint64_t>(bytes))); }

void device_owner(uint32_t owner) {
  static uint32_t last = 0;
  const uint32_t before = std::exchange(last, owner);
  if (before != 0 && before != owner) collect_fault(before, [] {});
}

void device_download(char* to, const char* from, int64_t bytes, uint32_t owner, std::function<void()> done) {
  try {
    device_owner(owner);
    for (int64_t at = 0; at < bytes; at += kChunk) {
      const int64_t n = std::min(kChunk, bytes - at);
      with_pinned(n, [&](char* block) {
        check("a download", plugin->download(block, from + at, static_cast<uint64_t>(n)));
        completions().push([=](const char* why) {
          if (!why) std::memcpy(to + at, block, n);
          pinned().give(block, n);
        });
      });
    }
    collect_fault(owner, done);
  } catch (const Error& e) {
    executor().note_error(owner, e.code, e.what());
    // Pieces before may still be on their way to `to`, which belongs to the caller again after done().
    completions().push_after([done](const char*) { done(); });
  }
}

namespace {

// The plugin sees all commands at once and may do the work of neighbours by one kernel; host actions (op < 0) it leaves alone.
void run_together(const std::vector<Command>& commands) {
  std::vector<std::vector<View>> outputs;
  std::vector<PluginCommand> list;
  for (const Command& c : commands) {
    std::vector<View>& out = outputs.emplace_back(c.out);
    list.push_back({c.op, {c.in.data(), static_cast<int>(c.in.size()), out.data(), static_cast<int>(out.size()), c.attr.data(), static_cast<int>(c.attr.size())}});
  }
  const int n = static_cast<int>(list.size());
  for (int at = 0; at < n;) {
    if (list[at].op >= 0) at += run_from(list.data(), n, at);
    else commands[at++].execute();
  }
}

}  // namespace

DeviceGraph::~DeviceGraph() {
  if (graph_) plugin->drop_graph(graph_);
}

void DeviceGraph::run(const std::vector<Command>& commands) {
  if (graph_) return check("a graph", plugin->launch(graph_));
  if (warm_) check("a graph", plugin->capture_begin());
  try {
    run_together(commands);
  } catch (...) {
    if (warm_) {
      void* broken = nullptr;
      plugin->capture_end(&broken, &nodes_);
      if (broken) plugin->drop_graph(broken);
    }
    throw;
  }
  if (warm_) {
    check("a graph", plugin->capture_end(&graph_, &nodes_));
    check("a graph", plugin->launch(graph_));
  }
  warm_ = true;
}

}  // namespace llm
