// Compares our declarations of cuBLASLt and NCCL with the real headers, where they are installed; compiling it is the test:
//     nvcc -std=c++20 -Inative [-I<folder with cublasLt.h>] [-I<folder with nccl.h>] -c native/cuda/tests/abi_check.cu
// LLM_ABI_REQUIRED makes missing headers an error.
#include <cstddef>
#include <tuple>
#include <type_traits>

#include "cuda/lib/cublaslt.h"
#include "cuda/lib/nccl.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

namespace {
using namespace llm::cuda;

static_assert(sizeof(lt::Algo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(lt::Candidate) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(lt::Candidate, workspace) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(lt::Candidate, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(offsetof(lt::Candidate, waves) == offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));
static_assert(sizeof(lt::Status) == sizeof(cublasStatus_t) && sizeof(int) == sizeof(cublasComputeType_t) && sizeof(int) == sizeof(cublasOperation_t));
static_assert(lt::kSuccess == CUBLAS_STATUS_SUCCESS);
static_assert(lt::kCompute32F == CUBLAS_COMPUTE_32F);
static_assert(lt::kOpN == CUBLAS_OP_N && lt::kOpT == CUBLAS_OP_T);
static_assert(int(lt::kDescTransA) == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(int(lt::kDescTransB) == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(int(lt::kDescEpilogue) == CUBLASLT_MATMUL_DESC_EPILOGUE);
static_assert(int(lt::kDescBiasPointer) == CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(int(lt::kDescBiasType) == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
static_assert(int(lt::kDescScalePointerA) == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
static_assert(int(lt::kDescScalePointerB) == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
static_assert(int(lt::kDescFastAccumulation) == CUBLASLT_MATMUL_DESC_FAST_ACCUM);
#if CUBLAS_VERSION >= 120900
static_assert(int(lt::kDescScaleModeA) == CUBLASLT_MATMUL_DESC_A_SCALE_MODE);
static_assert(int(lt::kDescScaleModeB) == CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
static_assert(lt::kScaleOuterVector == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
#endif
static_assert(int(lt::kPrefWorkspace) == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(int(lt::kPrefReduction) == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
static_assert(int(lt::kPrefAlignA) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(int(lt::kPrefAlignB) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(int(lt::kPrefAlignC) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(int(lt::kPrefAlignD) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(int(lt::kEpilogueDefault) == CUBLASLT_EPILOGUE_DEFAULT && int(lt::kEpilogueBias) == CUBLASLT_EPILOGUE_BIAS);
static_assert(lt::kReductionF32 == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);

// Argument lists: ours must be callable with the real function behind it. Enums travel as int, handles as pointers.
template <class T>
using Plain = std::conditional_t<std::is_enum_v<T>, int, std::conditional_t<std::is_pointer_v<T>, void*, T>>;
template <class>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...)> {
  template <class S>
  struct Same : std::false_type {};
  template <class R2, class... A2>
  struct Same<R2 (*)(A2...)> : std::bool_constant<sizeof...(A) == sizeof...(A2) && std::is_same_v<std::tuple<Plain<R>, Plain<A>...>, std::tuple<Plain<R2>, Plain<A2>...>>> {};
};
#define SAME(ours, real) static_assert(Signature<decltype(ours)>::Same<decltype(&real)>::value, #real)
SAME(lt::Functions::version, cublasLtGetVersion);
SAME(lt::Functions::create, cublasLtCreate);
SAME(lt::Functions::status_text, cublasLtGetStatusString);
SAME(lt::Functions::desc_create, cublasLtMatmulDescCreate);
SAME(lt::Functions::desc_destroy, cublasLtMatmulDescDestroy);
SAME(lt::Functions::desc_set, cublasLtMatmulDescSetAttribute);
SAME(lt::Functions::layout_create, cublasLtMatrixLayoutCreate);
SAME(lt::Functions::layout_destroy, cublasLtMatrixLayoutDestroy);
SAME(lt::Functions::preference_create, cublasLtMatmulPreferenceCreate);
SAME(lt::Functions::preference_destroy, cublasLtMatmulPreferenceDestroy);
SAME(lt::Functions::preference_set, cublasLtMatmulPreferenceSetAttribute);
SAME(lt::Functions::heuristic, cublasLtMatmulAlgoGetHeuristic);
SAME(lt::Functions::check, cublasLtMatmulAlgoCheck);
SAME(lt::Functions::matmul, cublasLtMatmul);
}  // namespace
#elif defined(LLM_ABI_REQUIRED)
#error "cublasLt.h expected on the include path"
#endif

#if __has_include(<nccl.h>)
#include <nccl.h>

namespace {
namespace ours = llm::cuda::nccl;

static_assert(sizeof(ours::UniqueId) == sizeof(ncclUniqueId));
static_assert(ours::kSuccess == ncclSuccess && ours::kInProgress == ncclInProgress);
static_assert(int(ours::kInt8) == ncclInt8 && int(ours::kUint8) == ncclUint8 && int(ours::kInt32) == ncclInt32 && int(ours::kInt64) == ncclInt64);
static_assert(int(ours::kFloat16) == ncclFloat16 && int(ours::kFloat32) == ncclFloat32 && int(ours::kBfloat16) == ncclBfloat16);
static_assert(int(ours::kSum) == ncclSum && int(ours::kMax) == ncclMax && int(ours::kMin) == ncclMin && int(ours::kAvg) == ncclAvg);
static_assert(sizeof(ours::Config) <= sizeof(ncclConfig_t));
static_assert(offsetof(ours::Config, magic) == offsetof(ncclConfig_t, magic) && offsetof(ours::Config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(ours::Config, blocking) == offsetof(ncclConfig_t, blocking) && offsetof(ours::Config, net_name) == offsetof(ncclConfig_t, netName));
static_assert(offsetof(ours::Config, cga_cluster_size) == offsetof(ncclConfig_t, cgaClusterSize) && offsetof(ours::Config, min_ctas) == offsetof(ncclConfig_t, minCTAs));
static_assert(offsetof(ours::Config, max_ctas) == offsetof(ncclConfig_t, maxCTAs) && offsetof(ours::Config, split_share) == offsetof(ncclConfig_t, splitShare));
static_assert(NCCL_API_MAGIC == 0xcafebeef && NCCL_CONFIG_UNDEF_INT == INT_MIN && NCCL_VERSION(2, 18, 0) == 21800);

// Calls with our types converted one by one: wrong counts or orders of arguments do not compile.
[[maybe_unused]] void calls(ncclComm_t comm, cudaStream_t stream, const void* from, void* to) {
  ours::Functions f{};
  int version;
  ncclUniqueId id{};
  ncclConfig_t config{};
  f.get_version(&version), ncclGetVersion(&version);
  f.get_unique_id(reinterpret_cast<ours::UniqueId*>(&id)), ncclGetUniqueId(&id);
  auto c = reinterpret_cast<ours::Comm>(comm);
  f.comm_init_rank(&c, 1, ours::UniqueId{}, 0), ncclCommInitRank(&comm, 1, id, 0);
  f.comm_init_rank_config(&c, 1, ours::UniqueId{}, 0, reinterpret_cast<ours::Config*>(&config)), ncclCommInitRankConfig(&comm, 1, id, 0, &config);
  f.comm_destroy(c), ncclCommDestroy(comm);
  f.comm_abort(c), ncclCommAbort(comm);
  f.all_reduce(from, to, 1, ours::kFloat32, ours::kSum, c, stream), ncclAllReduce(from, to, 1, ncclFloat32, ncclSum, comm, stream);
  f.reduce_scatter(from, to, 1, ours::kFloat32, ours::kSum, c, stream), ncclReduceScatter(from, to, 1, ncclFloat32, ncclSum, comm, stream);
  f.all_gather(from, to, 1, ours::kFloat32, c, stream), ncclAllGather(from, to, 1, ncclFloat32, comm, stream);
  f.broadcast(from, to, 1, ours::kFloat32, 0, c, stream), ncclBroadcast(from, to, 1, ncclFloat32, 0, comm, stream);
  f.send(from, 1, ours::kFloat32, 0, c, stream), ncclSend(from, 1, ncclFloat32, 0, comm, stream);
  f.recv(to, 1, ours::kFloat32, 0, c, stream), ncclRecv(to, 1, ncclFloat32, 0, comm, stream);
  f.group_start(), ncclGroupStart();
  f.group_end(), ncclGroupEnd();
}
}  // namespace
#elif defined(LLM_ABI_REQUIRED)
#error "nccl.h expected on the include path"
#endif
