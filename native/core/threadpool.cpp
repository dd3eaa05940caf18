#include "threadpool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace llm::cpu {
namespace {

constexpr int kMaxThreads = 1024;
constexpr auto kSpin = std::chrono::microseconds(50);

void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

thread_local bool inside_parallel = false;

struct alignas(64) Range {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// state: epoch << 17 | open << 16 | workers inside. A worker joins by raising the count while the job is open; the caller
// closes the job and leaves when the count is back at zero, so it never waits for a thread that did not wake in time.
constexpr uint64_t kCountMask = 0xffff;
constexpr uint64_t kOpen = 1u << 16;
constexpr int kEpochShift = 17;

class Pool {
 public:
  void run(int64_t n_chunks, ChunkFn fn, void* ctx, int threads) {
    start_workers(threads - 1);
    const int participants = static_cast<int>(std::min<int64_t>(std::min(threads, workers_ + 1), n_chunks));
    fn_ = fn;
    ctx_ = ctx;
    participants_ = participants;
    failed_.store(false, std::memory_order_relaxed);
    for (int t = 0; t < participants; ++t) {
      ranges_[t].next.store(n_chunks * t / participants, std::memory_order_relaxed);
      ranges_[t].end = n_chunks * (t + 1) / participants;
    }
    state_.store((++epoch_ << kEpochShift) | kOpen, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) {
      signal_.fetch_add(1, std::memory_order_seq_cst);
      signal_.notify_all();
    }
    inside_parallel = true;
    work(0);
    inside_parallel = false;
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    wait_for_workers();
    if (failed_.load(std::memory_order_acquire)) {
      std::exception_ptr e = error_;
      error_ = nullptr;
      std::rethrow_exception(e);
    }
  }

  std::mutex mutex;  // held by the caller whose job runs

 private:
  void work(int self) {
    try {
      for (int i = 0; i < participants_; ++i) {
        Range& range = ranges_[(self + i) % participants_];
        while (range.next.load(std::memory_order_relaxed) < range.end) {
          const int64_t chunk = range.next.fetch_add(1, std::memory_order_relaxed);
          if (chunk >= range.end) break;
          fn_(ctx_, chunk);
        }
      }
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!failed_.load(std::memory_order_relaxed)) {
        error_ = std::current_exception();
        failed_.store(true, std::memory_order_release);
      }
      for (int i = 0; i < participants_; ++i) ranges_[i].next.store(ranges_[i].end, std::memory_order_relaxed);
    }
  }

  // Spins while the others finish their last chunk; when that takes long (they were descheduled) it gives the processor away.
  void wait_for_workers() {
    const auto busy = [this] { return (state_.load(std::memory_order_seq_cst) & kCountMask) != 0; };
    if (!busy()) return;
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < kSpin) {
      pause_cpu();
      if (!busy()) return;
    }
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    for (;;) {
      const uint32_t ticket = left_.load(std::memory_order_seq_cst);
      if (!busy()) break;
      left_.wait(ticket, std::memory_order_seq_cst);
    }
    caller_sleeps_.store(false, std::memory_order_relaxed);
  }

  void worker(int self) {
    inside_parallel = true;
    uint64_t seen = 0;
    auto idle_since = std::chrono::steady_clock::now();
    for (;;) {
      uint64_t s = state_.load(std::memory_order_acquire);
      bool joined = false;
      while ((s & kOpen) != 0 && (s >> kEpochShift) != seen && !joined) {
        joined = state_.compare_exchange_weak(s, s + 1, std::memory_order_acq_rel, std::memory_order_acquire);
      }
      if (joined) {
        seen = s >> kEpochShift;
        if (self < participants_) work(self);
        // The last one out of a closed job wakes a caller that went to sleep.
        if ((state_.fetch_sub(1, std::memory_order_seq_cst) & (kOpen | kCountMask)) == 1 && caller_sleeps_.load(std::memory_order_seq_cst)) {
          left_.fetch_add(1, std::memory_order_seq_cst);
          left_.notify_all();
        }
        idle_since = std::chrono::steady_clock::now();
        continue;
      }
      if (std::chrono::steady_clock::now() - idle_since < kSpin) {
        pause_cpu();
        continue;
      }
      const uint32_t ticket = signal_.load(std::memory_order_seq_cst);
      parked_.fetch_add(1, std::memory_order_seq_cst);
      s = state_.load(std::memory_order_seq_cst);
      if ((s & kOpen) == 0 || (s >> kEpochShift) == seen) signal_.wait(ticket, std::memory_order_seq_cst);
      parked_.fetch_sub(1, std::memory_order_seq_cst);
      idle_since = std::chrono::steady_clock::now();
    }
  }

  void start_workers(int wanted) {
    if (workers_ >= wanted) return;
    sigset_t all, old;  // signals belong to the host's threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    try {
      for (; workers_ < wanted; ++workers_) {
        // Detached and never joined: the pool object is never destroyed, so process exit cannot hang or touch freed memory.
        std::thread([this, self = workers_ + 1] { worker(self); }).detach();
      }
    } catch (const std::system_error&) {
      // The system allows no more threads: those that exist do the work.
    }
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }

  std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<uint32_t> signal_{0};
  std::atomic<int> parked_{0};
  std::atomic<uint32_t> left_{0};
  std::atomic<bool> caller_sleeps_{false};
  alignas(64) ChunkFn fn_ = nullptr;
  void* ctx_ = nullptr;
  int participants_ = 0;
  int workers_ = 0;
  uint64_t epoch_ = 0;
  std::atomic<bool> failed_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  Range ranges_[kMaxThreads];
};

struct Config {
  int threads = 1;
  std::string error;
};

Config read_config() {
  Config config;
  config.threads = std::clamp<int>(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  const char* text = std::getenv("LLM_NUM_THREADS");
  if (text == nullptr || *text == 0) return config;
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  if (errno != 0 || *end != 0 || value < 1 || value > kMaxThreads) {
    config.error = std::string("[threads] LLM_NUM_THREADS must be an integer from 1 to 1024, got \"") + text + "\"";
  } else {
    config.threads = static_cast<int>(value);
  }
  return config;
}

const Config& config() {
  static const Config value = read_config();
  return value;
}

std::atomic<int> chosen_threads{0};
std::atomic<Pool*> current_pool{nullptr};
std::once_flag fork_handler;

Pool& pool() {
  Pool* p = current_pool.load(std::memory_order_acquire);
  if (p != nullptr) return *p;
  // A forked child has none of the workers: it forgets the parent's pool and starts its own at the next use.
  std::call_once(fork_handler, [] {
    pthread_atfork(nullptr, nullptr, [] {
      current_pool.store(nullptr, std::memory_order_release);
      inside_parallel = false;
    });
  });
  auto* fresh = new Pool;
  if (current_pool.compare_exchange_strong(p, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *p;
}

}  // namespace

int thread_count() {
  const int n = chosen_threads.load(std::memory_order_relaxed);
  return n > 0 ? n : config().threads;
}

void set_thread_count(int n) { chosen_threads.store(std::clamp(n, 1, kMaxThreads), std::memory_order_relaxed); }

const char* thread_count_error() { return config().error.empty() ? nullptr : config().error.c_str(); }

void parallel_for(int64_t n_chunks, ChunkFn fn, void* ctx) {
  if (n_chunks <= 0) return;
  const int threads = thread_count();
  if (n_chunks > 1 && threads > 1 && !inside_parallel) {
    Pool& p = pool();
    std::unique_lock lock(p.mutex, std::try_to_lock);
    if (lock.owns_lock()) return p.run(n_chunks, fn, ctx, threads);
  }
  for (int64_t i = 0; i < n_chunks; ++i) fn(ctx, i);
}

}  // namespace llm::cpu
