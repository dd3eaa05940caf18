// Process-wide thread pool for CPU kernels.
//
// Work is cut into chunks by the caller; how many threads run them never changes what a chunk computes, so results do not
// depend on the number of threads. Each participant owns a contiguous range of chunks and helps the others when it is done.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace llm::cpu {

/// One chunk of work. An exception thrown by a chunk is rethrown by parallel_for on the calling thread (the first one caught).
using ChunkFn = void (*)(void* ctx, int64_t chunk);

/// Runs fn(ctx, 0) … fn(ctx, n_chunks - 1), returns when all are done. The caller takes part. Nested calls, and calls made
/// while another thread holds the pool, run inline on the calling thread.
void parallel_for(int64_t n_chunks, ChunkFn fn, void* ctx);

/// Threads that take part in a parallel_for: LLM_NUM_THREADS, else the hardware threads this process may use.
int thread_count();

/// Changes thread_count() (1 … 1024; values outside are clamped). Takes effect at the next parallel_for.
void set_thread_count(int n);

/// Null, or why the value of LLM_NUM_THREADS was not accepted (the hardware count is used then; the caller should raise it).
const char* thread_count_error();

/// Runs body(begin, end) over [0, n) in pieces of `grain` (the last may be shorter).
template <class Body>
void parallel_for(int64_t n, int64_t grain, Body&& body) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  using Plain = std::remove_reference_t<Body>;
  struct Context {
    Plain* body;
    int64_t n, grain;
  } context{&body, n, grain};
  const ChunkFn run = [](void* p, int64_t chunk) {
    auto* c = static_cast<Context*>(p);
    const int64_t begin = chunk * c->grain;
    const int64_t end = begin + c->grain < c->n ? begin + c->grain : c->n;
    (*c->body)(begin, end);
  };
  parallel_for((n + grain - 1) / grain, run, static_cast<void*>(&context));
}

}  // namespace llm::cpu
