// The executor: one thread that runs commands in the order in which they were queued. CPU commands have run when they leave it; those of
// a device have been handed to its stream, in the same order.
#pragma once
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "core/error.h"
#include "core/submit.h"

namespace llm {

class Executor {
 public:
  uint64_t push(Command&& c);  // returns the command's sequence number
  void wait(uint64_t seq);
  void wait_all();
  void run_here(Command&& c);  // on the calling thread, after everything queued
  // Waits for the command that runs and starts no other. For the end of the process, whose handlers take down what kernels use.
  void park();

  // The first error of each JavaScript thread is kept until that thread reads.
  void note_error(uint32_t owner, Code code, const std::string& text);
  std::optional<Error> take_error(uint32_t owner);

 private:
  void loop();
  bool empty_hint();

  std::mutex mutex_;
  std::condition_variable wake_, room_, finished_;
  std::deque<Command> queue_;
  uint64_t pushed_ = 0, taken_ = 0;
  std::atomic<uint64_t> done_{0};
  std::unordered_map<uint32_t, Error> errors_;
  bool started_ = false, sleeping_ = false, running_ = false, parked_ = false;
};

Executor& executor();

}  // namespace llm
