#include "cuda/lib/nccl.h"

#include <dlfcn.h>

#include "cuda/lib/finder.h"

namespace llm::cuda {
namespace {

// Returns the first name that the library lacks, or nullptr.
const char* bind(void* library, nccl::Functions& fn) {
#define LLM_BIND(member, symbol) \
  if (!(fn.member = reinterpret_cast<decltype(fn.member)>(dlsym(library, symbol)))) return symbol;
  LLM_BIND(get_version, "ncclGetVersion")
  LLM_BIND(get_unique_id, "ncclGetUniqueId")
  LLM_BIND(comm_init_rank, "ncclCommInitRank")
  LLM_BIND(comm_init_rank_config, "ncclCommInitRankConfig")
  LLM_BIND(comm_destroy, "ncclCommDestroy")
  LLM_BIND(comm_abort, "ncclCommAbort")
  LLM_BIND(comm_async_error, "ncclCommGetAsyncError")
  LLM_BIND(error_text, "ncclGetErrorString")
  LLM_BIND(all_reduce, "ncclAllReduce")
  LLM_BIND(reduce_scatter, "ncclReduceScatter")
  LLM_BIND(all_gather, "ncclAllGather")
  LLM_BIND(broadcast, "ncclBroadcast")
  LLM_BIND(send, "ncclSend")
  LLM_BIND(recv, "ncclRecv")
  LLM_BIND(group_start, "ncclGroupStart")
  LLM_BIND(group_end, "ncclGroupEnd")
#undef LLM_BIND
  return nullptr;
}

NcclLibrary load() {
  NcclLibrary library;
  const OpenedLibrary opened = open_library({"NCCL", "LLM_NCCL_PATH", {"libnccl.so.2"}, {"nccl", "cu13"}});
  const std::string tried = opened.tried.empty() ? "" : " (did not open: " + opened.tried + ")";
  if (!opened.handle) {
    library.report = "NCCL missing: one GPU works, several do not. Install it, `pip install nvidia-nccl-cu13`, or set LLM_NCCL_PATH" + tried;
    return library;
  }
  if (const char* missing = bind(opened.handle, library.fn)) {
    library.report = "NCCL not used: " + opened.path + " has no " + missing + " (2.18 or later wanted)" + tried;
    return library;
  }
  library.fn.get_version(&library.version);
  if (library.version < 21800) {
    library.report = "NCCL not used: " + opened.path + " is version " + std::to_string(library.version) + ", 21800 or later wanted" + tried;
    return library;
  }
  library.usable = true;
  const int v = library.version;
  library.report = "NCCL " + std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100) + " " + opened.path + tried;
  return library;
}

}  // namespace

const NcclLibrary& nccl_library() {
  static const NcclLibrary library = load();
  return library;
}

}  // namespace llm::cuda
