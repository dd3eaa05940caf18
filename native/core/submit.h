// Commands: an op with its resolved views. Made by submit() after the shape rule ran and the outputs were allocated; then run on
// the executor thread (queued), at once (inline), or kept in a Plan (recording).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/memory.h"
#include "core/op.h"
#include "core/table.h"

namespace llm {

// What a shape rule sees: checks the inputs, sets the outputs. Contiguous strides are filled in by out().
class Infer {
 public:
  int op;
  const View* in;
  int n_in;
  const double* attr;
  int n_attr;
  std::vector<View> outs;

  bool has(int i) const { return i < n_in && in[i].ndim >= 0; }
  int64_t dim(int i, int d) const;  // negative d counts from the end
  void out(DType dtype, std::initializer_list<int64_t> shape);
  void out_like(int i, DType dtype);
  void out_like(int i) { out_like(i, in[i].dtype); }
  DType dtype_attr(int i) const;        // a float dtype's code

  [[noreturn]] void fail_shape(int i, const std::string& expected) const;
  void expect_ndim(int i, int ndim) const;
  void expect_shape(int i, std::initializer_list<int64_t> shape) const;  // -1 = any
  void expect_same_shape(int i, int j) const;
  void expect_dtype(int i, DType dtype) const;
  void expect_float(int i) const;
  void expect_same_dtype(int i, int j) const;
  void expect_attr(bool ok, const std::string& expected) const;
};

using ShapeRule = void (*)(Infer&);
ShapeRule shape_rule(int op);

struct Command {
  int op = -1;
  uint32_t owner = 0;  // the JavaScript thread that meets its data error
  Device device = Device::cpu;
  std::vector<View> in, out;
  std::vector<double> attr;
  std::vector<Storage*> held;     // retained until the command ran (or while its Plan lives)
  std::function<void()> callback;  // op == -1: a host action in queue order (fence, upload)

  Command() = default;
  Command(Command&&) = default;
  Command& operator=(Command&&) = default;
  void execute() const;        // throws Error, with the op's name
  void run() const noexcept;   // notes an error for its owner
  void drop();
};

class DeviceGraph;

// Commands with their own memory. All of one device.
struct Plan {
  Device device = Device::cpu;
  std::shared_ptr<PlanPool> pool;  // made with the first allocation
  std::vector<Command> commands;
  std::unique_ptr<DeviceGraph> graph;
  Plan();
  ~Plan();
  void run() const;  // executor thread; throws Error
};

// Runs the op's shape rule, allocates its outputs and hands the command on. Returns the outputs' handles and views.
struct Output {
  Handle handle;
  View view;
  Device device;
};
std::vector<Output> submit(int op, const Handle* in, int n_in, const double* attr, int n_attr);

Handle tensor_empty(DType dtype, const int64_t* shape, int ndim, Tag tag, Device device);
void tensor_write(Handle h, const void* data, int64_t bytes);  // in queue order; the data is copied at once
void tensor_read(Handle h, void* data, int64_t bytes);         // waits for the commands that touch it; throws a pending error
// As tensor_read, without waiting: `done` is called on another thread when the data is there, with the error that was met
// up to here, if any.
void tensor_read_then(Handle h, void* data, int64_t bytes, std::function<void(std::optional<Error>)> done);
// A dense tensor with the same numbers on another device, in queue order.
Handle tensor_to(Handle h, Device device, Tag tag);
void wait_all();                             // waits for the whole queue and the device; throws a pending error
void forget_owner(uint32_t owner);           // a thread ends: ends its recording, frees its tensors and errors

void set_inline(bool on);  // run commands on the calling thread (debugging, and processes that want one thread)
bool is_inline();

std::shared_ptr<Plan> plan_begin();  // from here this thread's commands are recorded, not run
void plan_end();
bool plan_recording();
void plan_run(const std::shared_ptr<Plan>& plan);

}  // namespace llm
