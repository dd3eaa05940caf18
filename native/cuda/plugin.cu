// The plugin's entry: one card, one stream, the merged kernel table. The CUDA runtime is linked in statically; the driver's functions come
// from the runtime (cudaGetDriverEntryPoint), so the library also loads where there is no driver, and open() says what is missing.
#include <cuda.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/plugin.h"
#include "cuda/faults.h"
#include "cuda/fuse.h"
#include "cuda/kernel.cuh"
#include "cuda/lib/finder.h"
#include "cuda/tables.h"

namespace llm::cuda {
namespace {

constexpr size_t kMostSpans = size_t{1} << 18;  // commands that a profile holds
constexpr char kNoRoom[] = "the card has no room for scratch memory";
constexpr size_t kScratchReserve = size_t{1} << 38, kScratchChunk = size_t{32} << 20, kSmallestMap = size_t{2} << 20;

struct Driver {
  CUresult (*address_reserve)(CUdeviceptr*, size_t, size_t, CUdeviceptr, unsigned long long);
  CUresult (*create)(CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*, unsigned long long);
  CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
  CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t);
  CUresult (*unmap)(CUdeviceptr, size_t);
  CUresult (*release)(CUmemGenericAllocationHandle);
  CUresult (*granularity)(size_t*, const CUmemAllocationProp*, CUmemAllocationGranularity_flags);
};

struct Span {
  int op;
  cudaEvent_t start, end;
};

struct State {
  int card = 0;
  Driver driver{};
  CUmemAllocationProp where{};
  Context ctx{};
  CudaKernel kernels[op_count] = {};
  std::mutex handles_mutex;
  std::unordered_map<void*, CUmemGenericAllocationHandle> handles;
  char* scratch = nullptr;  // reserved addresses, mapped up to scratch_mapped
  size_t scratch_mapped = 0, scratch_used = 0;
  bool capturing = false, profiling = false;
  cudaEvent_t profile_start = nullptr;
  std::vector<Span> spans;
  std::atomic<const char*> broken{nullptr};
};

State& state() {
  static State* s = new State;
  return *s;
}

const char* text(cudaError_t e) { return e == cudaSuccess ? nullptr : cudaGetErrorString(e); }

// The card of calls on this thread.
void enter() {
  thread_local int card = -1;
  if (card == state().card) return;
  card = state().card;
  cudaSetDevice(card);
}

template <class F>
const char* entry_point(const char* name, F& to) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t e = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  const cudaError_t e = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
  if (e != cudaSuccess) return cudaGetErrorString(e);
  if (!found) return "the driver is older than CUDA 12";
  to = reinterpret_cast<F>(found);
  return nullptr;
}

const char* map(void* at, uint64_t bytes) {
  State& s = state();
  CUmemGenericAllocationHandle handle;
  if (s.driver.create(&handle, bytes, &s.where, 0) != CUDA_SUCCESS) return kNoRoom;
  CUmemAccessDesc access{};
  access.location = s.where.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  const auto address = reinterpret_cast<CUdeviceptr>(at);
  if (s.driver.map(address, bytes, 0, handle, 0) != CUDA_SUCCESS) {
    s.driver.release(handle);
    return "cuMemMap failed";
  }
  if (s.driver.set_access(address, bytes, &access, 1) != CUDA_SUCCESS) {
    s.driver.unmap(address, bytes);
    s.driver.release(handle);
    return "cuMemSetAccess failed";
  }
  std::lock_guard lock(s.handles_mutex);
  s.handles[at] = handle;
  return nullptr;
}

void unmap(void* at, uint64_t bytes) {
  State& s = state();
  std::lock_guard lock(s.handles_mutex);
  const auto found = s.handles.find(at);
  s.driver.unmap(reinterpret_cast<CUdeviceptr>(at), bytes);
  s.driver.release(found->second);
  s.handles.erase(found);
}

const char* reserve(uint64_t bytes, void** base) {
  CUdeviceptr address = 0;
  if (state().driver.address_reserve(&address, bytes, 0, 0, 0) != CUDA_SUCCESS) return "cuMemAddressReserve failed";
  *base = reinterpret_cast<void*>(address);
  return nullptr;
}

const char* open(int card) {
  State& s = state();
  int count = 0;
  static char why[256];
  if (const cudaError_t e = cudaGetDeviceCount(&count); e != cudaSuccess) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) return "no NVIDIA driver is installed";
    snprintf(why, sizeof why, "%s (driver for CUDA %d.%d, built with %d.%d)", cudaGetErrorString(e), driver / 1000, driver % 1000 / 10,
             CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return why;
  }
  if (card < 0 || card >= count) {
    snprintf(why, sizeof why, "card %d was asked for, there are %d", card, count);
    return why;
  }
  s.card = card;
  if (const char* e = text(cudaSetDevice(card))) return e;
  cudaDeviceProp p;
  if (const char* e = text(cudaGetDeviceProperties(&p, card))) return e;
  if (p.major < 8) {
    snprintf(why, sizeof why, "%.127s has compute capability %d.%d, at least 8.0 is needed", p.name, p.major, p.minor);
    return why;
  }
  Driver& d = s.driver;
  for (const char* e : {entry_point("cuMemAddressReserve", d.address_reserve), entry_point("cuMemCreate", d.create), entry_point("cuMemMap", d.map),
                        entry_point("cuMemSetAccess", d.set_access), entry_point("cuMemUnmap", d.unmap), entry_point("cuMemRelease", d.release),
                        entry_point("cuMemGetAllocationGranularity", d.granularity)}) {
    if (e) return e;
  }
  s.where.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  s.where.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  s.where.location.id = card;
  size_t granularity = 0;
  if (d.granularity(&granularity, &s.where, CU_MEM_ALLOC_GRANULARITY_MINIMUM) != CUDA_SUCCESS) return "cuMemGetAllocationGranularity failed";
  if (kScratchChunk % granularity != 0 || kSmallestMap % granularity != 0) return "memory pages larger than 2 MiB are not supported";

  Context& c = s.ctx;
  c.sms = p.multiProcessorCount;
  c.arch = p.major * 10 + p.minor;
  c.shared_bytes = static_cast<int>(p.sharedMemPerBlockOptin);
  c.l2_bytes = p.l2CacheSize;
  const char* const serial = std::getenv("LLM_CUDA_SERIAL");
  c.serial = serial && *serial == '1';
  if (const char* e = text(cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking))) return e;
  if (const char* e = text(cudaMalloc(&c.fault_word, sizeof(int)))) return e;
  if (const char* e = text(cudaMemset(c.fault_word, 0, sizeof(int)))) return e;
  if (const char* e = text(cudaDeviceSynchronize())) return e;  // the stream above does not wait for it
  void* base = nullptr;
  if (const char* e = reserve(kScratchReserve, &base)) return e;
  s.scratch = static_cast<char*>(base);

  const auto add = [&](const CudaEntry* entries, int n) {
    for (int i = 0; i < n; i++) s.kernels[entries[i].op] = entries[i].kernel;
  };
#define LLM_ADD(name) add(name, name##_count)
  LLM_ADD(cuda_elementwise);
  LLM_ADD(cuda_reduce);
  LLM_ADD(cuda_random);
  LLM_ADD(cuda_layers);
  LLM_ADD(cuda_optim);
  LLM_ADD(cuda_matmul);
  LLM_ADD(cuda_attention);
  LLM_ADD(cuda_loss);
  LLM_ADD(cuda_quant);
  LLM_ADD(cuda_fp8);
  LLM_ADD(cuda_paged);
  LLM_ADD(cuda_sample);
#undef LLM_ADD
  return nullptr;
}

void info(DeviceInfo* to) {
  enter();
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, state().card);
  snprintf(to->name, sizeof to->name, "%.127s", p.name);
  to->compute = state().ctx.arch;
  to->sms = state().ctx.sms;
  cudaDriverGetVersion(&to->driver);
  cudaRuntimeGetVersion(&to->runtime);
  snprintf(to->libraries, sizeof to->libraries, "%s", library_report());
}

void memory_info(uint64_t* free_bytes, uint64_t* total_bytes) {
  enter();
  size_t f = 0, t = 0;
  cudaMemGetInfo(&f, &t);
  *free_bytes = f;
  *total_bytes = t;
}

// An error of a launch is gone with the asking; one of the device stays.
const char* failed(const char* why) {
  State& s = state();
  if (why && strcmp(why, cudaGetErrorString(cudaErrorMemoryAllocation)) == 0) {
    cudaGetLastError();
    return kNoRoom;
  }
  if (why && why != kNoRoom && !s.broken) {
    const cudaError_t e = s.capturing ? cudaSuccess : cudaStreamQuery(s.ctx.stream);
    if (e != cudaSuccess && e != cudaErrorNotReady) s.broken = cudaGetErrorString(e);
    cudaGetLastError();
  }
  return why;
}

const char* broken() { return state().broken; }

const char* pinned(uint64_t bytes, void** block) {
  enter();
  return failed(text(cudaHostAlloc(block, bytes, cudaHostAllocDefault)));
}

bool has(int op) { return state().kernels[op] != nullptr; }

const char* run(const PluginCommand* commands, int n, int at, int* taken) {
  State& s = state();
  enter();
  const int op = commands[at].op;
  s.ctx.captured = s.capturing ? commands : nullptr;
  s.ctx.captured_count = n;
  s.ctx.op = op;
  s.scratch_used = 0;
  Span span{op, nullptr, nullptr};
  const bool timed = s.profiling && !s.capturing && s.spans.size() < kMostSpans;
  if (timed) {
    cudaEventCreate(&span.start);
    cudaEventCreate(&span.end);
    cudaEventRecord(span.start, s.ctx.stream);
  }
  const char* why;
  try {
    *taken = 0;
    why = run_fused(s.ctx, commands + at, n - at, taken);
    if (*taken == 0) {
      why = s.kernels[op](s.ctx, commands[at].args);
      *taken = 1;
    }
  } catch (const std::bad_alloc&) {
    why = kNoRoom;
  } catch (const std::exception&) {  // none may cross the border of the library
    why = "the host failed while the kernel was chosen";
  }
  if (timed) {
    cudaEventRecord(span.end, s.ctx.stream);
    s.spans.push_back(span);
  }
  return failed(why);
}

const char* transfer(void* to, const void* from, uint64_t bytes, cudaMemcpyKind kind) {
  enter();
  return failed(text(cudaMemcpyAsync(to, from, bytes, kind, state().ctx.stream)));
}
const char* upload(void* to, const void* from, uint64_t bytes) { return transfer(to, from, bytes, cudaMemcpyHostToDevice); }
const char* copy(void* to, const void* from, uint64_t bytes) { return transfer(to, from, bytes, cudaMemcpyDeviceToDevice); }
const char* download(void* to, const void* from, uint64_t bytes) { return transfer(to, from, bytes, cudaMemcpyDeviceToHost); }

const char* take_fault(int32_t* to) {
  const char* why = transfer(to, state().ctx.fault_word, sizeof(int), cudaMemcpyDeviceToHost);
  return why ? why : failed(text(cudaMemsetAsync(state().ctx.fault_word, 0, sizeof(int), state().ctx.stream)));
}

void fault_of(int32_t code, int* op, const char** why) {
  *op = code >> 8;
  *why = fault_text(*op, static_cast<Fault>(code & 255));
}

const char* record(void** event) {
  enter();
  cudaEvent_t e;
  if (const char* why = text(cudaEventCreateWithFlags(&e, cudaEventBlockingSync | cudaEventDisableTiming))) return failed(why);
  const char* why = failed(text(cudaEventRecord(e, state().ctx.stream)));
  if (why) cudaEventDestroy(e);
  else *event = e;
  return why;
}

const char* wait(void* event) {
  enter();
  const auto e = static_cast<cudaEvent_t>(event);
  // A short wait is not worth going to sleep.
  for (int i = 0; i < 40; i++) {
    const cudaError_t now = cudaEventQuery(e);
    if (now == cudaSuccess) return nullptr;
    if (now != cudaErrorNotReady) break;
  }
  const cudaError_t result = cudaEventSynchronize(e);
  if (result != cudaSuccess) state().broken = cudaGetErrorString(result);
  return text(result);
}

void drop(void* event) { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }

const char* synchronize() {
  enter();
  return failed(text(cudaStreamSynchronize(state().ctx.stream)));
}

const char* capture_begin() {
  enter();
  // Relaxed: scratch memory may be mapped meanwhile, and other threads may allocate.
  const char* why = text(cudaStreamBeginCapture(state().ctx.stream, cudaStreamCaptureModeRelaxed));
  state().capturing = why == nullptr;
  return failed(why);
}

const char* capture_end(void** to, int* nodes) {
  State& s = state();
  cudaGraph_t graph = nullptr;
  *to = nullptr;
  s.capturing = false;
  if (const char* why = text(cudaStreamEndCapture(s.ctx.stream, &graph))) return failed(why);
  size_t count = 0;
  cudaGraphGetNodes(graph, nullptr, &count);
  *nodes = static_cast<int>(count);
  cudaGraphExec_t exec = nullptr;
  const char* why = text(cudaGraphInstantiate(&exec, graph, 0));
  cudaGraphDestroy(graph);
  *to = exec;
  return failed(why);
}

const char* launch(void* graph) {
  enter();
  return failed(text(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), state().ctx.stream)));
}

void drop_graph(void* graph) {
  enter();
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

uint64_t scratch_bytes() { return state().scratch_mapped; }

void profile(int on) {
  State& s = state();
  enter();
  for (const Span& span : s.spans) {
    cudaEventDestroy(span.start);
    cudaEventDestroy(span.end);
  }
  s.spans.clear();
  s.profiling = on != 0;
  if (!s.profile_start) cudaEventCreate(&s.profile_start);
  cudaEventRecord(s.profile_start, s.ctx.stream);
}

int profile_read(ProfileRecord* to, int n) {
  State& s = state();
  enter();
  cudaStreamSynchronize(s.ctx.stream);
  int count = 0;
  for (; count < n && count < static_cast<int>(s.spans.size()); count++) {
    const Span& span = s.spans[count];
    float start = 0, length = 0;
    cudaEventElapsedTime(&start, s.profile_start, span.start);
    cudaEventElapsedTime(&length, span.start, span.end);
    to[count] = {span.op, start * 1000, length * 1000};
  }
  return count;
}

const PluginApi& api() {
  static const PluginApi a = {kPluginAbi, kAbi, open,  info,       memory_info, reserve, map,         unmap,       pinned, kNoRoom, broken,
                        has,        run,  upload, copy,      download,    take_fault, fault_of, record, wait,       drop,   synchronize, capture_begin, capture_end, launch,
                        drop_graph, scratch_bytes, profile, profile_read};
  return a;
}

}  // namespace

// Kernels overlap within a graph only: it begins when everything before it has finished.
bool Context::settled(const View& v) const {
  if (!captured || !present(v)) return captured != nullptr;
  const Bytes mine = bytes_of(v);
  const auto clear = [&](const View& written) {
    const Bytes other = bytes_of(written);
    return !present(written) || other.begin >= mine.end || other.end <= mine.begin;
  };
  for (int i = 0; i < captured_count; i++) {
    const PluginCommand& c = captured[i];
    if (c.op < 0) continue;
    for (int o = 0; o < c.args.n_out; o++)
      if (!clear(c.args.out[o])) return false;
    for (int j = 0; j < kOps[c.op].n_inputs && j < c.args.n_in; j++)
      if (kOps[c.op].inputs[j].mutated && !clear(c.args.in[j])) return false;
  }
  return true;
}

void* Context::scratch(size_t bytes) {
  State& s = state();
  const size_t at = s.scratch_used, end = at + ((bytes + 255) & ~size_t{255});
  const size_t before = s.scratch_mapped;
  while (s.scratch_mapped < end) {
    if (s.scratch_mapped + kScratchChunk > kScratchReserve || map(s.scratch + s.scratch_mapped, kScratchChunk)) {
      // What was mapped here no kernel has seen: the card gets it back.
      while (s.scratch_mapped > before) unmap(s.scratch + (s.scratch_mapped -= kScratchChunk), kScratchChunk);
      throw std::bad_alloc();
    }
    s.scratch_mapped += kScratchChunk;
  }
  s.scratch_used = end;
  return s.scratch + at;
}

}  // namespace llm::cuda

extern "C" __attribute__((visibility("default"))) const llm::PluginApi* llm_plugin() { return &llm::cuda::api(); }
