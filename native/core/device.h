// The opened device plugin: memory, transfers, graphs and events as the core uses them. Commands reach the device in queue order on one
// stream; a second thread waits for events, so that neither JavaScript nor the executor blocks on the device.
#pragma once
#include <functional>
#include <string>

#include "core/plugin.h"
#include "core/submit.h"

namespace llm {

// Opens the plugin library at `path` on the card `ordinal` and makes its memory pool. Once a process.
// Throws Error(device): no such file, another build, no driver, no card.
void open_device(const std::string& path, int ordinal);
const PluginApi* device_api();  // null when none is open

// ---- executor thread only ----

void device_run(int op, const KernelArgs& args);  // throws
// The commands that follow are `owner`'s: bad data met before belongs to the one before, and is noted for it.
void device_owner(uint32_t owner);
void device_upload(char* to, const char* from, int64_t bytes);  // `from` may be reused on return
void device_copy(char* to, const char* from, int64_t bytes);
// Copies and then calls `done` on another thread; data errors met so far are noted for `owner` first. bytes = 0 only waits.
void device_download(char* to, const char* from, int64_t bytes, uint32_t owner, std::function<void()> done);

// A Plan's commands as a graph.
class DeviceGraph {
 public:
  ~DeviceGraph();
  // The first call runs the commands without a graph (kernels may choose algorithms by timing them), the second captures, later ones replay.
  void run(const std::vector<Command>& commands);
  int nodes() const { return nodes_; }

 private:
  bool warm_ = false;
  void* graph_ = nullptr;
  int nodes_ = 0;
};

}  // namespace llm
