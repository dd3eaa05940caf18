// The border between the core and a device plugin (native/cuda): plain C data and functions, one version number. The core owns
// tensors, the queue, shape rules and the allocator's bookkeeping; the plugin owns the device. All calls that end in a text return
// nullptr on success, else why not (static, or valid until the thread's next call).
#pragma once
#include <cstdint>

#include "core/op.h"

namespace llm {

constexpr int kPluginAbi = 2;  // raised with every change of this file; the op table has its own number (gen/ops.h: kAbi)

struct DeviceInfo {
  char name[128];
  int compute;            // 90 = compute capability 9.0
  int sms;                // streaming multiprocessors
  int driver, runtime;    // CUDA versions, 12040 = 12.4
  char libraries[2048];   // one line a library: name, version and path, or why it is missing
};

struct PluginCommand {
  int op;  // negative: an action of the host, which the plugin is not asked to run
  KernelArgs args;
};

struct PluginApi {
  int abi;      // kPluginAbi
  int op_abi;   // kAbi of the op table that it was built from
  const char* (*open)(int device);  // once, before everything else
  void (*info)(DeviceInfo* to);
  void (*memory_info)(uint64_t* free_bytes, uint64_t* total_bytes);

  // Address space and physical pages. Any thread.
  const char* (*reserve)(uint64_t bytes, void** base);
  const char* (*map)(void* at, uint64_t bytes);  // multiples of 2 MiB; fails without side effects when the card is full
  void (*unmap)(void* at, uint64_t bytes);       // the same range as a map(); the device must be idle
  const char* (*pinned)(uint64_t bytes, void** block);

  const char* out_of_memory;  // what run() returns (this very pointer) when the card has no room for a kernel's scratch space
  const char* (*broken)();    // the error after which the device cannot be used any more, or null

  // Commands, from the executor thread only; each returns before the device has run it.
  bool (*has)(int op);
  // Runs command `at` of `n`, and with it as many of the next as one kernel can do the work of: `taken` in all.
  // Every output is written as if they had run one by one. While a graph is captured the list is all that it will hold.
  const char* (*run)(const PluginCommand* commands, int n, int at, int* taken);
  const char* (*upload)(void* device, const void* pinned, uint64_t bytes);
  const char* (*copy)(void* to, const void* from, uint64_t bytes);  // within the device
  const char* (*download)(void* pinned, const void* device, uint64_t bytes);
  // Asks for the first data error since the last time; `pinned` (4 bytes) holds its code once the device got here.
  const char* (*take_fault)(int32_t* pinned);
  void (*fault_text)(int32_t code, int* op, const char** text);

  // Events. record: executor thread; wait and drop: any thread.
  const char* (*record)(void** event);
  const char* (*wait)(void* event);  // blocks the calling thread without spinning
  void (*drop)(void* event);
  const char* (*synchronize)();

  // Graphs: what is run between begin and end is captured, not executed. Executor thread.
  const char* (*capture_begin)();
  const char* (*capture_end)(void** graph, int* nodes);  // graph = null when it could not be made
  const char* (*launch)(void* graph);
  void (*drop_graph)(void* graph);

  uint64_t (*scratch_bytes)();  // physical memory behind the kernels' scratch space

  // Time of each command on the device. on = 1 starts; read copies up to n records of finished commands.
  void (*profile)(int on);
  int (*profile_read)(struct ProfileRecord* to, int n);
};

struct ProfileRecord {
  int op;
  float start_us, us;  // since profile(1)
};

// The one exported symbol: const PluginApi* llm_plugin().
using PluginEntry = const PluginApi* (*)();

}  // namespace llm
