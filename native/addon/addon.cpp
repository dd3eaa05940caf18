// The N-API face of the core. Hot calls pass integers through two buffers shared with JavaScript (packages/core/src/native.ts):
// i32 holds handles and shapes, f64 attributes. C++ exceptions end here and become LlmErrors with the same code.
#include <node_api.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "core/device.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/submit.h"
#include "core/table.h"
#include "core/threadpool.h"
#include "cpu/isa.h"
#include "cpu/register.h"
#include "gen/ops.h"

namespace {

using namespace llm;

constexpr int kIntsPerOutput = 4 + kMaxDims;  // handle, dtype, device, ndim, shape

// Where asynchronous reads settle their promises. Outlives its JavaScript thread for as long as a queued read refers to it.
struct Settle {
  std::mutex mutex;
  std::condition_variable settled;
  int waiting = 0;  // reads that still write into this thread's buffers
  napi_threadsafe_function function = nullptr;  // null once the thread ends
};

// One per JavaScript thread.
struct Instance {
  uint32_t owner = 0;
  int32_t* i32 = nullptr;
  size_t i32_length = 0;
  double* f64 = nullptr;
  size_t f64_length = 0;
  napi_ref buffers[2] = {};
  std::shared_ptr<Settle> settle = std::make_shared<Settle>();
  int pending = 0;
  std::unordered_map<int32_t, std::shared_ptr<Plan>> plans;
  int32_t next_plan = 1;
};

Instance& instance(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return *static_cast<Instance*>(data);
}

napi_value error_value(napi_env env, const char* code, const char* message) {
  napi_value c, m, error;
  napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &c);
  napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &m);
  napi_create_error(env, c, m, &error);
  return error;
}

void throw_error(napi_env env, const char* code, const char* message) { napi_throw(env, error_value(env, code, message)); }

// Arguments of one call, fetched once.
struct Args {
  napi_env env;
  size_t count = 8;
  napi_value v[8];

  Args(napi_env e, napi_callback_info info) : env(e) { napi_get_cb_info(e, info, &count, v, nullptr, nullptr); }
  int32_t i32(size_t i) const {
    int32_t x = 0;
    if (i >= count || napi_get_value_int32(env, v[i], &x) != napi_ok) throw Error(Code::internal, "[addon] expected an integer");
    return x;
  }
  double f64(size_t i) const {
    double x = 0;
    if (i >= count || napi_get_value_double(env, v[i], &x) != napi_ok) throw Error(Code::internal, "[addon] expected a number");
    return x;
  }
  std::string text(size_t i) const {
    size_t n = 0;
    if (i >= count || napi_get_value_string_utf8(env, v[i], nullptr, 0, &n) != napi_ok) throw Error(Code::internal, "[addon] expected a string");
    std::string s(n, '\0');
    napi_get_value_string_utf8(env, v[i], s.data(), n + 1, &n);
    return s;
  }
  // Memory of a typed array (views on a SharedArrayBuffer too).
  char* bytes(size_t i, int64_t& size) const {
    napi_typedarray_type type = static_cast<napi_typedarray_type>(-1);
    size_t length = 0;
    void* data = nullptr;
    if (i >= count || napi_get_typedarray_info(env, v[i], &type, &length, &data, nullptr, nullptr) != napi_ok) {
      throw Error(Code::internal, "[addon] expected a typed array");
    }
    static constexpr int width[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};
    if (type < 0 || static_cast<size_t>(type) >= std::size(width)) throw Error(Code::dtype, "[addon] a typed array of an unknown type; pass its bits as Uint16Array");
    size = static_cast<int64_t>(length) * width[type];
    return static_cast<char*>(data);
  }
};

napi_value number(napi_env env, double x) {
  napi_value v;
  napi_create_double(env, x, &v);
  return v;
}

napi_value integer(napi_env env, int32_t x) {
  napi_value v;
  napi_create_int32(env, x, &v);
  return v;
}

napi_value string(napi_env env, const std::string& s) {
  napi_value v;
  napi_create_string_utf8(env, s.data(), s.size(), &v);
  return v;
}

void put(napi_env env, napi_value object, const char* key, napi_value value) { napi_set_named_property(env, object, key, value); }

using Body = napi_value (*)(napi_env, Instance&, const Args&);

template <Body body>
napi_value call(napi_env env, napi_callback_info info) {
  try {
    Instance& self = instance(env);
    current_owner = self.owner;
    return body(env, self, Args(env, info));
  } catch (const Error& e) {
    throw_error(env, code_name(e.code), e.what());
  } catch (const std::bad_alloc&) {
    throw_error(env, "OUT_OF_MEMORY", "[native] the host ran out of memory");
  } catch (const std::exception& e) {
    throw_error(env, "INTERNAL", e.what());
  }
  return nullptr;
}

DType dtype_of(int32_t code) {
  if (code < 0 || code >= kDTypes) throw Error(Code::dtype, "[tensor] unknown dtype code " + std::to_string(code));
  return static_cast<DType>(code);
}

Tag tag_of(int32_t code) { return code >= 0 && code < kTags ? static_cast<Tag>(code) : Tag::other; }

Device device_of(int32_t code) {
  if (code < 0 || code >= kDevices) throw Error(Code::device, "[device] unknown device code " + std::to_string(code));
  return static_cast<Device>(code);
}

int read_shape(const Instance& self, int32_t ndim, int64_t* shape) {
  if (ndim < 0 || ndim > kMaxDims) throw Error(Code::shape, "[tensor] at most 6 dimensions, got " + std::to_string(ndim));
  for (int i = 0; i < ndim; i++) shape[i] = self.i32[i];
  return ndim;
}

napi_value setup(napi_env env, Instance& self, const Args& a) {
  int64_t size = 0;
  self.i32 = reinterpret_cast<int32_t*>(a.bytes(0, size));
  self.i32_length = static_cast<size_t>(size / 4);
  self.f64 = reinterpret_cast<double*>(a.bytes(1, size));
  self.f64_length = static_cast<size_t>(size / 8);
  if (const char* fault = cpu::isa_error()) throw Error(Code::options, fault);
  if (const char* fault = cpu::thread_count_error()) throw Error(Code::options, fault);
  for (int i = 0; i < 2; i++) napi_create_reference(env, a.v[i], 1, &self.buffers[i]);
  return integer(env, kAbi);
}

napi_value submit_op(napi_env env, Instance& self, const Args& a) {
  const int32_t op = a.i32(0), n_in = a.i32(1), n_attr = a.i32(2);
  if (n_in < 0 || static_cast<size_t>(n_in) > self.i32_length || n_attr < 0 || static_cast<size_t>(n_attr) > self.f64_length) {
    throw Error(Code::internal, "[submit] too many inputs");
  }
  const auto outputs = submit(op, reinterpret_cast<const Handle*>(self.i32), n_in, self.f64, n_attr);
  int32_t* to = self.i32;
  for (const Output& o : outputs) {
    to[0] = static_cast<int32_t>(o.handle);
    to[1] = static_cast<int32_t>(o.view.dtype);
    to[2] = static_cast<int32_t>(o.device);
    to[3] = o.view.ndim;
    for (int d = 0; d < o.view.ndim; d++) to[4 + d] = static_cast<int32_t>(o.view.shape[d]);
    to += kIntsPerOutput;
  }
  return integer(env, static_cast<int32_t>(outputs.size()));
}

napi_value empty(napi_env env, Instance& self, const Args& a) {
  int64_t shape[kMaxDims];
  const int ndim = read_shape(self, a.i32(1), shape);
  return integer(env, static_cast<int32_t>(tensor_empty(dtype_of(a.i32(0)), shape, ndim, tag_of(a.i32(2)), device_of(a.i32(3)))));
}

napi_value map(napi_env env, Instance& self, const Args& a) {  // path, offset, bytes, dtype, ndim, tag
  View v;
  v.dtype = dtype_of(a.i32(3));
  v.ndim = read_shape(self, a.i32(4), v.shape);
  int64_t stride = 1;
  for (int i = v.ndim - 1; i >= 0; i--) {
    v.stride[i] = stride;
    stride *= v.shape[i];
  }
  const int64_t bytes = static_cast<int64_t>(a.f64(2));
  if (bytes != view_numel(v) * static_cast<int64_t>(dtype_bytes(v.dtype))) {
    throw Error(Code::shape, "[map_file] shape and byte count disagree");
  }
  Storage* s = map_file(a.text(0), static_cast<int64_t>(a.f64(1)), bytes, tag_of(a.i32(5)));
  v.data = s->data;
  return integer(env, static_cast<int32_t>(table_insert(s, v)));
}

// handle, ndim, offset in elements; i32 holds the shape, f64 the strides.
napi_value view(napi_env env, Instance& self, const Args& a) {
  Tensor t = table_get(static_cast<Handle>(a.i32(0)));
  View v;
  v.dtype = t.view.dtype;
  try {
    v.ndim = read_shape(self, a.i32(1), v.shape);
    constexpr double kMost = 1ll << 53;
    const double offset = a.f64(2);
    if (!(offset >= -kMost && offset <= kMost)) throw Error(Code::shape, "[view] outside the tensor's memory");
    int64_t numel = 1;
    __int128 last = static_cast<int64_t>(offset);
    const int64_t size = static_cast<int64_t>(dtype_bytes(v.dtype)), before = t.view.data - t.storage->data;
    const __int128 start = before + last * size;
    for (int i = 0; i < v.ndim; i++) {
      const double stride = self.f64[i];
      if (v.shape[i] < 0 || !(stride >= 0 && stride <= kMost)) throw Error(Code::shape, "[view] shape or stride out of range");
      v.stride[i] = static_cast<int64_t>(stride);
      if (__builtin_mul_overflow(numel, v.shape[i], &numel) || numel > (int64_t{1} << 60)) throw Error(Code::shape, "[view] more than 2^60 elements");
      if (v.shape[i] > 0) last += static_cast<__int128>(v.shape[i] - 1) * v.stride[i];
    }
    if (numel > 0 && (start < 0 || before + (last + 1) * size > t.storage->bytes)) throw Error(Code::shape, "[view] outside the tensor's memory");
    v.data = t.storage->data + (numel > 0 ? static_cast<int64_t>(start) : before);
  } catch (...) {
    t.storage->release();
    throw;
  }
  return integer(env, static_cast<int32_t>(table_insert(t.storage, v)));
}

napi_value alias(napi_env env, Instance&, const Args& a) { return integer(env, static_cast<int32_t>(table_alias(static_cast<Handle>(a.i32(0))))); }

napi_value release(napi_env env, Instance&, const Args& a) {
  napi_value v;
  napi_get_boolean(env, table_release(static_cast<Handle>(a.i32(0))), &v);
  return v;
}

napi_value write(napi_env, Instance&, const Args& a) {
  int64_t size = 0;
  const char* data = a.bytes(1, size);
  tensor_write(static_cast<Handle>(a.i32(0)), data, size);
  return nullptr;
}

napi_value read(napi_env, Instance&, const Args& a) {
  int64_t size = 0;
  char* data = a.bytes(1, size);
  tensor_read(static_cast<Handle>(a.i32(0)), data, size);
  return nullptr;
}

napi_value to(napi_env env, Instance&, const Args& a) {  // handle, device, tag
  return integer(env, static_cast<int32_t>(tensor_to(static_cast<Handle>(a.i32(0)), device_of(a.i32(1)), tag_of(a.i32(2)))));
}

napi_value wait(napi_env, Instance&, const Args&) {
  wait_all();
  return nullptr;
}

// What a promise waits for; `buffer` keeps the memory that is written meanwhile.
struct Pending {
  napi_deferred deferred;
  std::optional<Error> failure;
  napi_ref buffer = nullptr;
};

void settle_on_js(napi_env env, napi_value, void*, void* data) {
  const std::unique_ptr<Pending> pending(static_cast<Pending*>(data));
  if (!env) return;  // the environment is shutting down
  Instance& self = instance(env);
  if (const auto& failure = pending->failure) {
    napi_reject_deferred(env, pending->deferred, error_value(env, code_name(failure->code), failure->what()));
  } else {
    napi_value undefined;
    napi_get_undefined(env, &undefined);
    napi_resolve_deferred(env, pending->deferred, undefined);
  }
  if (pending->buffer) napi_delete_reference(env, pending->buffer);
  if (--self.pending == 0) napi_unref_threadsafe_function(env, self.settle->function);
}

// A promise, and the function that settles it from any thread.
std::function<void(std::optional<Error>)> promise_to_settle(napi_env env, Instance& self, Pending* pending, napi_value* promise) {
  napi_create_promise(env, &pending->deferred, promise);
  if (self.pending++ == 0) napi_ref_threadsafe_function(env, self.settle->function);
  {
    std::lock_guard lock(self.settle->mutex);
    self.settle->waiting++;
  }
  return [settle = self.settle, pending](std::optional<Error> failure) {
    std::lock_guard lock(settle->mutex);
    pending->failure = std::move(failure);
    if (--settle->waiting == 0) settle->settled.notify_all();
    if (settle->function) napi_call_threadsafe_function(settle->function, pending, napi_tsfn_nonblocking);
  };
}

// A promise that resolves when the tensor's bytes are in the buffer, or an error is pending: pending() throws it.
napi_value read_async(napi_env env, Instance& self, const Args& a) {
  int64_t size = 0;
  char* data = a.bytes(1, size);
  const Handle h = static_cast<Handle>(a.i32(0));
  auto* pending = new Pending;
  napi_value promise;
  napi_create_reference(env, a.v[1], 1, &pending->buffer);
  auto settle = promise_to_settle(env, self, pending, &promise);
  try {
    tensor_read_then(h, data, size, settle);
  } catch (...) {
    settle(std::nullopt);
    throw;
  }
  return promise;
}

napi_value open(napi_env, Instance&, const Args& a) {  // path of the plugin, card
  open_device(a.text(0), a.i32(1));
  return nullptr;
}

napi_value memory(napi_env env, Instance&, const Args& a) {
  const MemoryStats s = main_pool(device_of(a.i32(0))).stats();
  napi_value o, tags;
  napi_create_object(env, &o);
  napi_create_object(env, &tags);
  for (int i = 0; i < kTags; i++) put(env, tags, kTagNames[i], number(env, static_cast<double>(s.live[i])));
  put(env, o, "liveBytes", number(env, static_cast<double>(s.live_total)));
  put(env, o, "peakBytes", number(env, static_cast<double>(s.peak)));
  put(env, o, "cachedBytes", number(env, static_cast<double>(s.cached)));
  put(env, o, "limitBytes", number(env, static_cast<double>(s.limit)));
  put(env, o, "liveTensors", number(env, static_cast<double>(table_live())));
  put(env, o, "byTag", tags);
  return o;
}

napi_value memory_limit(napi_env, Instance&, const Args& a) {
  main_pool(device_of(a.i32(0))).set_limit(static_cast<int64_t>(a.f64(1)));
  return nullptr;
}

napi_value memory_trim(napi_env, Instance&, const Args& a) {
  main_pool(device_of(a.i32(0))).trim();
  return nullptr;
}

napi_value run_inline(napi_env, Instance&, const Args& a) {
  set_inline(a.i32(0) != 0);
  return nullptr;
}

napi_value plan_record(napi_env env, Instance& self, const Args&) {
  auto plan = plan_begin();
  self.plans[self.next_plan] = plan;
  return integer(env, self.next_plan++);
}

napi_value plan_stop(napi_env, Instance&, const Args&) {
  plan_end();
  return nullptr;
}

napi_value plan_replay(napi_env, Instance& self, const Args& a) {
  const auto it = self.plans.find(a.i32(0));
  if (it == self.plans.end()) throw Error(Code::disposed, "[plan] the Plan was disposed");
  plan_run(it->second);
  return nullptr;
}

napi_value plan_size(napi_env env, Instance& self, const Args& a) {
  const auto it = self.plans.find(a.i32(0));
  return integer(env, it == self.plans.end() ? -1 : static_cast<int32_t>(it->second->commands.size()));
}

napi_value plan_free(napi_env, Instance& self, const Args& a) {
  self.plans.erase(a.i32(0));
  return nullptr;
}

napi_value doctor(napi_env env, Instance&, const Args&) {
  napi_value o, kernels;
  napi_create_object(env, &o);
  put(env, o, "isa", string(env, cpu::isa_name(cpu::active_isa())));
  put(env, o, "detectedIsa", string(env, cpu::isa_name(cpu::detected_isa())));
  put(env, o, "threads", integer(env, cpu::thread_count()));
  napi_create_object(env, &kernels);
  for (int op = 0; op < op_count; op++) put(env, kernels, kOps[op].name, string(env, cpu_kernel_variant(op)));
  put(env, o, "kernels", kernels);
  if (const PluginApi* api = device_api()) {
    DeviceInfo info{};
    api->info(&info);
    uint64_t free_bytes = 0, total = 0;
    api->memory_info(&free_bytes, &total);
    napi_value cuda, missing;
    napi_create_object(env, &cuda);
    put(env, cuda, "name", string(env, info.name));
    put(env, cuda, "compute", integer(env, info.compute));
    put(env, cuda, "multiprocessors", integer(env, info.sms));
    put(env, cuda, "driver", integer(env, info.driver));
    put(env, cuda, "runtime", integer(env, info.runtime));
    put(env, cuda, "memoryBytes", number(env, static_cast<double>(total)));
    put(env, cuda, "freeBytes", number(env, static_cast<double>(free_bytes)));
    put(env, cuda, "scratchBytes", number(env, static_cast<double>(api->scratch_bytes())));
    put(env, cuda, "libraries", string(env, info.libraries));
    napi_create_array(env, &missing);
    uint32_t count = 0;
    for (int op = 0; op < op_count; op++)
      if (!api->has(op)) napi_set_element(env, missing, count++, string(env, kOps[op].name));
    put(env, cuda, "missingKernels", missing);
    put(env, o, "cuda", cuda);
  }
  return o;
}

napi_value profile(napi_env, Instance&, const Args& a) {
  if (!device_api()) throw Error(Code::device, "[profile] no device is open");
  wait_all();
  device_api()->profile(a.i32(0));
  return nullptr;
}

// Up to the array's length / 3 records as op, start, duration (microseconds); returns how many.
napi_value profile_read(napi_env env, Instance&, const Args& a) {
  int64_t size = 0;
  auto* to = reinterpret_cast<double*>(a.bytes(0, size));
  if (!device_api()) throw Error(Code::device, "[profile] no device is open");
  wait_all();
  std::vector<ProfileRecord> records(static_cast<size_t>(size / 24));
  const int n = device_api()->profile_read(records.data(), static_cast<int>(records.size()));
  for (int i = 0; i < n; i++) {
    to[3 * i] = records[i].op;
    to[3 * i + 1] = records[i].start_us;
    to[3 * i + 2] = records[i].us;
  }
  return integer(env, n);
}

void finalize(napi_env, void* data, void*) { delete static_cast<Instance*>(data); }

// The JavaScript thread ends: what it made is freed, and only that.
void end_thread(void* data) {
  auto* self = static_cast<Instance*>(data);
  {
    std::unique_lock lock(self->settle->mutex);
    self->settle->function = nullptr;
    self->settle->settled.wait(lock, [&] { return self->settle->waiting == 0; });
  }
  self->plans.clear();
  forget_owner(self->owner);
}

}  // namespace

NAPI_MODULE_INIT() {
  static std::atomic<uint32_t> owners{0};
  auto* self = new Instance;
  self->owner = ++owners;
  napi_set_instance_data(env, self, finalize, nullptr);
  napi_value name = string(env, "llm:settle");
  napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, settle_on_js, &self->settle->function);
  napi_unref_threadsafe_function(env, self->settle->function);
  napi_add_env_cleanup_hook(env, end_thread, self);
  const struct {
    const char* name;
    napi_callback callback;
  } functions[] = {
      {"setup", call<setup>},       {"submit", call<submit_op>},     {"empty", call<empty>},
      {"map", call<map>},           {"view", call<view>},            {"alias", call<alias>},
      {"release", call<release>},   {"write", call<write>},          {"read", call<read>},
      {"wait", call<wait>},         {"memory", call<memory>},
      {"memoryLimit", call<memory_limit>}, {"memoryTrim", call<memory_trim>}, {"runInline", call<run_inline>},
      {"planRecord", call<plan_record>},   {"planStop", call<plan_stop>},     {"planReplay", call<plan_replay>},
      {"planSize", call<plan_size>},       {"planFree", call<plan_free>},     {"doctor", call<doctor>},
      {"to", call<to>},                    {"readAsync", call<read_async>},
      {"openDevice", call<open>},          {"profile", call<profile>},        {"profileRead", call<profile_read>},
  };
  for (const auto& f : functions) {
    napi_value v;
    napi_create_function(env, f.name, NAPI_AUTO_LENGTH, f.callback, nullptr, &v);
    put(env, exports, f.name, v);
  }
  return exports;
}
