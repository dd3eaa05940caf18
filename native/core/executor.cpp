#include "core/executor.h"

#include <cstdlib>
#include <thread>

namespace llm {

constexpr size_t kMaxQueued = 8192;  // bounds how far a host that never waits runs ahead

uint64_t Executor::push(Command&& c) {
  std::unique_lock lock(mutex_);
  if (!started_) {
    started_ = true;
    std::thread([this] { loop(); }).detach();
    std::atexit([] { executor().park(); });
  }
  room_.wait(lock, [&] { return queue_.size() < kMaxQueued; });
  const uint64_t seq = ++pushed_;
  commands_pushed.store(seq, std::memory_order_release);
  // Pool memory is not held while the command waits: when its last owner lets go of it, the next allocation may take it over,
  // whose commands come later in this queue. So queued work needs no more memory than work that runs at once.
  std::vector<Storage*> pooled;
  auto keep = c.held.begin();
  for (Storage* s : c.held) {
    s->last_use.store(seq, std::memory_order_relaxed);
    if (s->pool && s->pool->is_main()) pooled.push_back(s);
    else *keep++ = s;
  }
  c.held.erase(keep, c.held.end());
  queue_.push_back(std::move(c));
  if (sleeping_) wake_.notify_one();
  lock.unlock();
  for (Storage* s : pooled) s->release();
  return seq;
}

void Executor::wait(uint64_t seq) {
  for (int spin = 0; spin < 2000; spin++) {
    if (done_.load(std::memory_order_acquire) >= seq) return;
    __builtin_ia32_pause();
  }
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [&] { return done_.load(std::memory_order_acquire) >= seq; });
}

void Executor::wait_all() {
  uint64_t last;
  {
    std::lock_guard lock(mutex_);
    last = pushed_;
  }
  wait(last);
}

void Executor::run_here(Command&& c) {
  static std::mutex one_at_a_time;  // kernels share scratch memory
  std::lock_guard lock(one_at_a_time);
  wait_all();
  c.run();
  c.drop();
}

void Executor::park() {
  std::unique_lock lock(mutex_);
  parked_ = true;
  finished_.wait(lock, [&] { return !running_; });
}

void Executor::note_error(uint32_t owner, Code code, const std::string& text) {
  std::lock_guard lock(mutex_);
  errors_.emplace(owner, Error(code, text));
}

std::optional<Error> Executor::take_error(uint32_t owner) {
  std::lock_guard lock(mutex_);
  auto found = errors_.extract(owner);
  if (found.empty()) return std::nullopt;
  return std::move(found.mapped());
}

void Executor::loop() {
  for (;;) {
    Command c;
    uint64_t seq;
    if (empty_hint()) {
      for (int spin = 0; spin < 1500 && empty_hint(); spin++) __builtin_ia32_pause();
    }
    {
      std::unique_lock lock(mutex_);
      sleeping_ = true;
      wake_.wait(lock, [&] { return !queue_.empty() && !parked_; });
      sleeping_ = false;
      running_ = true;
      c = std::move(queue_.front());
      queue_.pop_front();
      seq = ++taken_;
      if (queue_.size() == kMaxQueued - 1) room_.notify_all();
    }
    c.run();
    c.drop();
    {
      std::lock_guard lock(mutex_);
      running_ = false;
      done_.store(seq, std::memory_order_release);
      commands_done.store(seq, std::memory_order_release);
    }
    finished_.notify_all();
  }
}

bool Executor::empty_hint() {
  std::lock_guard lock(mutex_);
  return queue_.empty();
}

Executor& executor() {
  static Executor* e = new Executor;
  return *e;
}

}  // namespace llm
