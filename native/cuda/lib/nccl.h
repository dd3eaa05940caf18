// The part of NCCL that collectives need, declared here so that its header is not needed to build (the library is opened at run time, see
// finder.h). Names and values are those of NCCL 2.18 and later; tests/abi_check.cu compares them with the real header.
#pragma once
#include <cuda_runtime_api.h>

#include <climits>
#include <cstdint>
#include <string>

namespace llm::cuda::nccl {

using Result = int;
constexpr Result kSuccess = 0, kInProgress = 7;

struct CommStruct;
using Comm = CommStruct*;

struct UniqueId {
  char bytes[128];
};

enum DataType : int { kInt8 = 0, kUint8 = 1, kInt32 = 2, kInt64 = 4, kFloat16 = 6, kFloat32 = 7, kBfloat16 = 9 };
enum RedOp : int { kSum = 0, kMax = 2, kMin = 3, kAvg = 4 };

// The fields of NCCL 2.18, which later versions keep and only add to: `size` and `version` say what the caller knows.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef, version = 21800;
  int blocking = INT_MIN;  // INT_MIN = the library's default
  int cga_cluster_size = INT_MIN, min_ctas = INT_MIN, max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};

struct Functions {
  Result (*get_version)(int*);
  Result (*get_unique_id)(UniqueId*);
  Result (*comm_init_rank)(Comm*, int ranks, UniqueId, int rank);
  Result (*comm_init_rank_config)(Comm*, int ranks, UniqueId, int rank, Config*);
  Result (*comm_destroy)(Comm);
  Result (*comm_abort)(Comm);
  Result (*comm_async_error)(Comm, Result*);
  const char* (*error_text)(Result);
  Result (*all_reduce)(const void* send, void* receive, size_t count, DataType, RedOp, Comm, cudaStream_t);
  Result (*reduce_scatter)(const void* send, void* receive, size_t receive_count, DataType, RedOp, Comm, cudaStream_t);
  Result (*all_gather)(const void* send, void* receive, size_t send_count, DataType, Comm, cudaStream_t);
  Result (*broadcast)(const void* send, void* receive, size_t count, DataType, int root, Comm, cudaStream_t);
  Result (*send)(const void* from, size_t count, DataType, int peer, Comm, cudaStream_t);
  Result (*recv)(void* to, size_t count, DataType, int peer, Comm, cudaStream_t);
  Result (*group_start)();
  Result (*group_end)();
};

}  // namespace llm::cuda::nccl

namespace llm::cuda {

struct NcclLibrary {
  bool usable = false;
  nccl::Functions fn{};
  int version = 0;     // 22703 = 2.27.3
  std::string report;  // "NCCL 2.27.3 /usr/…/libnccl.so.2", or why not
};

// Opened by the first call.
const NcclLibrary& nccl_library();

}  // namespace llm::cuda
