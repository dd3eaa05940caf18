#include "core/submit.h"

#include <condition_variable>
#include <cstring>
#include <mutex>

#include "core/device.h"
#include "core/error.h"
#include "core/executor.h"
#include "cpu/register.h"
#include "gen/ops.h"

namespace llm {

// ---- shape rule helpers ----

namespace {

std::string shape_text(const View& v) {
  std::string text = "[";
  for (int i = 0; i < v.ndim; i++) text += (i ? ", " : "") + std::to_string(v.shape[i]);
  return text + "]";
}

std::string input_name(int op, int i) {
  const OpSpec& spec = kOps[op];
  if (i < spec.n_inputs && !spec.inputs[i].variadic) return spec.inputs[i].name;
  return std::string(spec.inputs[spec.n_inputs - 1].name) + "[" + std::to_string(i - spec.n_inputs + 1) + "]";
}

bool is_contiguous(const View& v) {
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 0; i--) {
    if (v.shape[i] == 0) return true;
    if (v.shape[i] != 1 && v.stride[i] != stride) return false;
    stride *= v.shape[i];
  }
  return true;
}

// Only the first dim strided: what inputs marked * accept.
bool is_row_strided(const View& v) {
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 1; i--) {
    if (v.shape[i] == 0) return true;
    if (v.shape[i] != 1 && v.stride[i] != stride) return false;
    stride *= v.shape[i];
  }
  return true;
}

void fill_strides(View& v) {
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 0; i--) {
    v.stride[i] = stride;
    stride = static_cast<int64_t>(static_cast<uint64_t>(stride) * static_cast<uint64_t>(v.shape[i]));  // may wrap: new_bytes() refuses it
  }
}

}  // namespace

int64_t Infer::dim(int i, int d) const {
  const int at = d < 0 ? in[i].ndim + d : d;
  if (at < 0 || at >= in[i].ndim) fail_shape(i, "at least " + std::to_string(d < 0 ? -d : d + 1) + "-dimensional");
  return in[i].shape[at];
}

void Infer::out(DType dtype, std::initializer_list<int64_t> shape) {
  View v;
  v.dtype = dtype;
  v.ndim = 0;
  for (int64_t s : shape) v.shape[v.ndim++] = s;
  fill_strides(v);
  outs.push_back(v);
}

void Infer::out_like(int i, DType dtype) {
  View v = in[i];
  v.data = nullptr;
  v.dtype = dtype;
  fill_strides(v);
  outs.push_back(v);
}

DType Infer::dtype_attr(int i) const {
  if (!(attr[i] >= 0 && attr[i] < kDTypes)) {
    throw Error(Code::dtype, std::string("[") + kOps[op].name + "] dtype code " + std::to_string(attr[i]) + " is not one of 0..6");
  }
  const DType dtype = static_cast<DType>(static_cast<int>(attr[i]));
  if (!is_float(dtype)) throw Error(Code::dtype, std::string("[") + kOps[op].name + "] the result's dtype must be f32, f16 or bf16");
  return dtype;
}

void Infer::fail_shape(int i, const std::string& expected) const {
  throw Error(Code::shape, std::string("[") + kOps[op].name + "] " + input_name(op, i) + " must be " + expected + ", got " +
                               (has(i) ? shape_text(in[i]) : "nothing"));
}

void Infer::expect_ndim(int i, int ndim) const {
  if (in[i].ndim != ndim) fail_shape(i, std::to_string(ndim) + "-dimensional");
}

void Infer::expect_shape(int i, std::initializer_list<int64_t> shape) const {
  bool ok = in[i].ndim == static_cast<int>(shape.size());
  int d = 0;
  std::string text = "[";
  for (int64_t s : shape) {
    if (ok && s >= 0 && in[i].shape[d] != s) ok = false;
    text += (d++ ? ", " : "") + (s < 0 ? std::string("any") : std::to_string(s));
  }
  if (!ok) fail_shape(i, text + "]");
}

void Infer::expect_same_shape(int i, int j) const {
  bool ok = in[i].ndim == in[j].ndim;
  for (int d = 0; ok && d < in[i].ndim; d++) ok = in[i].shape[d] == in[j].shape[d];
  if (!ok) fail_shape(i, shape_text(in[j]) + " like " + input_name(op, j));
}

void Infer::expect_dtype(int i, DType dtype) const {
  if (in[i].dtype == dtype) return;
  throw Error(Code::dtype, std::string("[") + kOps[op].name + "] " + input_name(op, i) + " must be " + dtype_name(dtype) + ", got " +
                               dtype_name(in[i].dtype));
}

void Infer::expect_float(int i) const {
  if (is_float(in[i].dtype)) return;
  throw Error(Code::dtype, std::string("[") + kOps[op].name + "] " + input_name(op, i) + " must be f32, f16 or bf16, got " +
                               dtype_name(in[i].dtype));
}

void Infer::expect_same_dtype(int i, int j) const {
  if (in[i].dtype == in[j].dtype) return;
  throw Error(Code::dtype, std::string("[") + kOps[op].name + "] " + input_name(op, i) + " must be " + dtype_name(in[j].dtype) + " like " +
                               input_name(op, j) + ", got " + dtype_name(in[i].dtype));
}

void Infer::expect_attr(bool ok, const std::string& expected) const {
  if (!ok) throw Error(Code::options, std::string("[") + kOps[op].name + "] " + expected);
}

// ---- commands ----

void Command::execute() const {
  if (op < 0) return callback();
  std::vector<View> views = out;
  const KernelArgs args{in.data(), static_cast<int>(in.size()), views.data(), static_cast<int>(views.size()), attr.data(),
                        static_cast<int>(attr.size())};
  if (device == Device::cuda) return device_run(op, args);
  const char* fault;
  try {
    fault = cpu_kernel(op)(args);
  } catch (const std::bad_alloc&) {
    throw Error(Code::out_of_memory, std::string("[") + kOps[op].name + "] the host has no room for scratch memory");
  } catch (const Error& e) {  // scratch memory of a kernel may run out
    throw Error(e.code, std::string("[") + kOps[op].name + "] " + e.what());
  }
  if (fault) throw Error(Code::numeric, std::string("[") + kOps[op].name + "] " + fault);
}

void Command::run() const noexcept {
  try {
    if (device == Device::cuda) device_owner(owner);
    execute();
  } catch (const Error& e) {
    executor().note_error(owner, e.code, e.what());
  } catch (const std::exception& e) {
    executor().note_error(owner, Code::internal, e.what());
  }
}

void Command::drop() {
  for (Storage* s : held) s->release();
  held.clear();
  callback = nullptr;  // frees what it holds (a Plan) before the command counts as done
}

Plan::Plan() = default;

Plan::~Plan() {
  for (Command& c : commands) c.drop();
}

void Plan::run() const {
  if (graph) return graph->run(commands);
  // One command's bad data does not keep the others from running; the first error counts.
  std::unique_ptr<Error> first;
  for (const Command& c : commands) {
    try {
      c.execute();
    } catch (const Error& e) {
      if (!first) first = std::make_unique<Error>(e);
    }
  }
  if (first) throw *first;
}

namespace {

std::atomic<bool> inline_mode{false};
thread_local std::shared_ptr<Plan> recording;

// The Plan that is being recorded takes the device of its first command or tensor.
void record_on(Device device) {
  if (!recording->pool) {
    recording->device = device;
    recording->pool = std::make_shared<PlanPool>(main_pool(device));
    if (device != Device::cpu) recording->graph = std::make_unique<DeviceGraph>();
  } else if (recording->device != device) {
    throw Error(Code::plan, std::string("[plan] the Plan is recorded on ") + kDeviceNames[static_cast<int>(recording->device)] +
                                ", but a command works on " + kDeviceNames[static_cast<int>(device)]);
  }
}

void hand_on(Command&& c) {
  c.owner = current_owner;
  if (recording) {
    // Memory of the Plan's own pool is owned by the Plan; holding it would stop the pool from reusing it within the recording.
    std::vector<Storage*> outside;
    for (Storage* s : c.held) {
      if (s->pool == recording->pool.get()) s->release();
      else outside.push_back(s);
    }
    c.held = std::move(outside);
    recording->commands.push_back(std::move(c));
    return;
  }
  if (inline_mode.load(std::memory_order_relaxed)) executor().run_here(std::move(c));
  else executor().push(std::move(c));
}

Storage* new_storage(int64_t bytes, Tag tag, Device device) {
  if (!recording) return allocate_storage(bytes, tag, &main_pool(device), nullptr);
  record_on(device);
  return allocate_storage(bytes, tag, recording->pool.get(), recording->pool);
}

int64_t view_bytes(const View& v) { return view_numel(v) * static_cast<int64_t>(dtype_bytes(v.dtype)); }

// Bytes of a tensor about to be made; a product beyond 2^62 is refused before it wraps around.
int64_t new_bytes(const char* what, const View& v) {
  int64_t bytes = static_cast<int64_t>(dtype_bytes(v.dtype));
  for (int i = 0; i < v.ndim; i++) {
    if (__builtin_mul_overflow(bytes, v.shape[i], &bytes) || bytes > (int64_t{1} << 62)) {
      throw Error(Code::out_of_memory, std::string("[") + what + "] a tensor of shape " + shape_text(v) + " is larger than any memory");
    }
  }
  return bytes;
}

void check_readable(const char* what) {
  if (recording) throw Error(Code::plan, std::string("[") + what + "] values cannot be read or written while a Plan is recorded");
}

// Something that another thread will announce.
struct Signal {
  std::mutex mutex;
  std::condition_variable changed;
  bool set = false;
  void announce() {
    std::lock_guard lock(mutex);
    set = true;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return set; });
  }
};

}  // namespace

std::vector<Output> submit(int op, const Handle* in, int n_in, const double* attr, int n_attr) {
  if (op < 0 || op >= op_count) throw Error(Code::internal, "[submit] unknown op " + std::to_string(op));
  const OpSpec& spec = kOps[op];
  Command c;
  c.op = op;
  c.attr.assign(attr, attr + n_attr);
  c.in.resize(n_in);
  c.held.reserve(n_in + spec.n_outputs);
  std::vector<Output> result;
  bool placed = false;
  try {
    if (n_attr != spec.n_attributes) throw Error(Code::internal, std::string("[") + spec.name + "] wrong number of attributes");
    if (n_in != spec.n_inputs && !(spec.n_inputs == 1 && spec.inputs[0].variadic)) {
      throw Error(Code::internal, std::string("[") + spec.name + "] wrong number of inputs");
    }
    for (int i = 0; i < n_in; i++) {
      const InputSpec& input = spec.inputs[i < spec.n_inputs ? i : spec.n_inputs - 1];
      if (in[i] == 0) {
        if (!input.optional) throw Error(Code::shape, std::string("[") + spec.name + "] " + input.name + " is required");
        continue;
      }
      Tensor t = table_get(in[i]);
      c.held.push_back(t.storage);
      c.in[i] = t.view;
      const Device device = t.storage->device();
      if (placed && device != c.device) {
        throw Error(Code::device, std::string("[") + spec.name + "] all inputs must be on one device: " + input_name(op, i) + " is on " +
                                      kDeviceNames[static_cast<int>(device)] + ", those before it on " + kDeviceNames[static_cast<int>(c.device)]);
      }
      c.device = device;
      placed = true;
      const bool fine = is_contiguous(t.view) || (input.strided && is_row_strided(t.view));
      if (fine) continue;
      if (input.mutated || op == op_contiguous) {
        if (op != op_contiguous) throw Error(Code::shape, std::string("[") + spec.name + "] " + input.name + " must be contiguous");
        continue;
      }
      // A strided view where the kernel wants dense memory: a dense copy takes its place.
      Output dense = submit(op_contiguous, &in[i], 1, nullptr, 0)[0];
      Tensor d = table_get(dense.handle);
      table_release(dense.handle);
      c.held.back()->release();
      c.held.back() = d.storage;
      c.in[i] = d.view;
    }
    if (recording) record_on(c.device);
    if (c.device == Device::cuda && !device_api()->has(op)) {
      throw Error(Code::unsupported, std::string("[") + spec.name + "] has no cuda kernel");
    }
    Infer infer{op, c.in.data(), n_in, attr, n_attr, {}};
    shape_rule(op)(infer);
    for (View& v : infer.outs) {
      Storage* s = new_storage(new_bytes(spec.name, v), Tag::activations, c.device);
      v.data = s->data;
      s->retain();
      c.held.push_back(s);
      c.out.push_back(v);
      result.push_back({table_insert(s, v), v, c.device});
    }
  } catch (...) {
    for (Output& o : result) table_release(o.handle);
    c.drop();
    throw;
  }
  hand_on(std::move(c));
  return result;
}

Handle tensor_empty(DType dtype, const int64_t* shape, int ndim, Tag tag, Device device) {
  if (ndim < 0 || ndim > kMaxDims) throw Error(Code::shape, "[tensor] at most 6 dimensions, got " + std::to_string(ndim));
  View v;
  v.dtype = dtype;
  v.ndim = ndim;
  for (int i = 0; i < ndim; i++) {
    if (shape[i] < 0) throw Error(Code::shape, "[tensor] negative dimension " + std::to_string(shape[i]));
    v.shape[i] = shape[i];
  }
  const int64_t bytes = new_bytes("tensor", v);
  fill_strides(v);
  Storage* s = new_storage(bytes, tag, device);
  v.data = s->data;
  return table_insert(s, v);
}

void tensor_write(Handle h, const void* data, int64_t bytes) {
  check_readable("tensor.write");
  Tensor t = table_get(h);
  if (!is_contiguous(t.view) || view_bytes(t.view) != bytes) {
    const int64_t want = view_bytes(t.view);
    t.storage->release();
    throw Error(Code::shape, "[tensor.write] expected " + std::to_string(want) + " bytes into a contiguous tensor, got " + std::to_string(bytes));
  }
  auto copy = std::make_shared<std::vector<char>>(static_cast<const char*>(data), static_cast<const char*>(data) + bytes);
  char* to = t.view.data;
  Command c;
  c.device = t.storage->device();
  c.held.push_back(t.storage);
  c.callback = [copy, to, device = c.device] {
    if (copy->empty()) return;
    if (device == Device::cuda) device_upload(to, copy->data(), static_cast<int64_t>(copy->size()));
    else std::memcpy(to, copy->data(), copy->size());
  };
  hand_on(std::move(c));
}

void tensor_read_then(Handle h, void* data, int64_t bytes, std::function<void(std::optional<Error>)> done) {
  check_readable("tensor.read");
  Tensor t = table_get(h);
  if (!is_contiguous(t.view)) {
    t.storage->release();
    const Handle dense = submit(op_contiguous, &h, 1, nullptr, 0)[0].handle;
    try {
      tensor_read_then(dense, data, bytes, std::move(done));
    } catch (...) {
      table_release(dense);
      throw;
    }
    table_release(dense);
    return;
  }
  const int64_t want = view_bytes(t.view);
  if (want != bytes) {
    t.storage->release();
    throw Error(Code::shape, "[tensor.read] the tensor has " + std::to_string(want) + " bytes, the buffer " + std::to_string(bytes));
  }
  Command c;
  c.device = t.storage->device();
  c.held.push_back(t.storage);
  c.callback = [to = static_cast<char*>(data), from = t.view.data, bytes, owner = current_owner, device = c.device, done = std::move(done)] {
    // The error is taken here, at the read's place in the queue: what comes later fails a later read.
    if (device == Device::cuda) return device_download(to, from, bytes, owner, [done, owner] { done(executor().take_error(owner)); });
    if (bytes > 0) std::memcpy(to, from, bytes);
    done(executor().take_error(owner));
  };
  hand_on(std::move(c));
}

// Throws the first error of this thread's commands since the last time.
static void throw_pending() {
  if (const auto failure = executor().take_error(current_owner)) throw *failure;
}

void tensor_read(Handle h, void* data, int64_t bytes) {
  check_readable("tensor.read");
  const Tensor t = table_get(h);
  const std::unique_ptr<Storage, void (*)(Storage*)> held(t.storage, [](Storage* s) { s->release(); });
  if (t.storage->device() != Device::cpu || !is_contiguous(t.view) || view_bytes(t.view) != bytes) {
    auto signal = std::make_shared<Signal>();
    auto failure = std::make_shared<std::optional<Error>>();
    tensor_read_then(h, data, bytes, [signal, failure](std::optional<Error> why) {
      *failure = std::move(why);
      signal->announce();
    });
    signal->wait();
    if (*failure) throw **failure;
    return;
  }
  // Memory of a Plan is written by whole replays, which only the queue's end marks.
  if (t.storage->pool && !t.storage->pool->is_main()) executor().wait_all();
  else executor().wait(t.storage->last_use.load(std::memory_order_relaxed));
  if (bytes > 0) std::memcpy(data, t.view.data, bytes);
  throw_pending();
}

Handle tensor_to(Handle h, Device device, Tag tag) {
  check_readable("tensor.to");
  Tensor t = table_get(h);
  if (!is_contiguous(t.view)) {
    t.storage->release();
    const Handle dense = submit(op_contiguous, &h, 1, nullptr, 0)[0].handle;
    try {
      const Handle moved = tensor_to(dense, device, tag);
      table_release(dense);
      return moved;
    } catch (...) {
      table_release(dense);
      throw;
    }
  }
  Handle result;
  try {
    result = tensor_empty(t.view.dtype, t.view.shape, t.view.ndim, tag, device);
  } catch (...) {
    t.storage->release();
    throw;
  }
  Tensor to = table_get(result);
  Command c;
  c.device = device;
  const Device source = t.storage->device();
  const char* from = t.view.data;
  char* target = to.view.data;
  const int64_t bytes = view_bytes(t.view);
  c.held.push_back(t.storage);
  c.held.push_back(to.storage);
  c.callback = [=, owner = current_owner] {
    if (bytes == 0) return;
    if (device == Device::cpu && source == Device::cpu) {
      std::memcpy(target, from, bytes);
    } else if (source == Device::cpu) {
      device_upload(target, from, bytes);
    } else if (device == Device::cpu) {
      // Later CPU commands may read the target: the queue waits here.
      Signal signal;
      device_download(target, from, bytes, owner, [&] { signal.announce(); });
      signal.wait();
    } else {
      device_copy(target, from, bytes);
    }
  };
  hand_on(std::move(c));
  return result;
}

void wait_all() {
  if (device_api()) {
    auto signal = std::make_shared<Signal>();
    Command c;
    c.callback = [signal, owner = current_owner] { device_download(nullptr, nullptr, 0, owner, [signal] { signal->announce(); }); };
    executor().push(std::move(c));
    signal->wait();
  }
  executor().wait_all();
  throw_pending();
}

void forget_owner(uint32_t owner) {
  recording.reset();
  table_release_owner(owner);
  executor().take_error(owner);
}

void set_inline(bool on) {
  executor().wait_all();
  inline_mode.store(on);
}

bool is_inline() { return inline_mode.load(); }

std::shared_ptr<Plan> plan_begin() {
  if (recording) throw Error(Code::plan, "[plan] a Plan is being recorded on this thread already");
  recording = std::make_shared<Plan>();
  return recording;
}

void plan_end() { recording.reset(); }

bool plan_recording() { return recording != nullptr; }

void plan_run(const std::shared_ptr<Plan>& plan) {
  check_readable("plan.run");
  Command c;
  c.device = plan->device;
  // Every storage that the plan writes or reads from outside must wait for this run when it is read.
  for (const Command& inner : plan->commands) {
    for (Storage* s : inner.held) {
      s->retain();
      c.held.push_back(s);
    }
  }
  c.callback = [plan] { plan->run(); };
  hand_on(std::move(c));
}

}  // namespace llm
