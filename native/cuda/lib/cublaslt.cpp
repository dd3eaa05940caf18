#include "cuda/lib/cublaslt.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/lib/finder.h"

namespace llm::cuda {
namespace {

// Returns the first name that the library lacks, or nullptr.
const char* bind(void* library, lt::Functions& fn) {
#define LLM_BIND(member, symbol) \
  if (!(fn.member = reinterpret_cast<decltype(fn.member)>(dlsym(library, symbol)))) return symbol;
  LLM_BIND(version, "cublasLtGetVersion")
  LLM_BIND(create, "cublasLtCreate")
  LLM_BIND(status_text, "cublasLtGetStatusString")
  LLM_BIND(desc_create, "cublasLtMatmulDescCreate")
  LLM_BIND(desc_destroy, "cublasLtMatmulDescDestroy")
  LLM_BIND(desc_set, "cublasLtMatmulDescSetAttribute")
  LLM_BIND(layout_create, "cublasLtMatrixLayoutCreate")
  LLM_BIND(layout_destroy, "cublasLtMatrixLayoutDestroy")
  LLM_BIND(preference_create, "cublasLtMatmulPreferenceCreate")
  LLM_BIND(preference_destroy, "cublasLtMatmulPreferenceDestroy")
  LLM_BIND(preference_set, "cublasLtMatmulPreferenceSetAttribute")
  LLM_BIND(heuristic, "cublasLtMatmulAlgoGetHeuristic")
  LLM_BIND(check, "cublasLtMatmulAlgoCheck")
  LLM_BIND(matmul, "cublasLtMatmul")
#undef LLM_BIND
  return nullptr;
}

// 12.x counts 120501 = 12.5.1, and so does 13.x.
std::string version_text(size_t v) { return std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100); }

CublasLtLibrary load() {
  CublasLtLibrary library;
  const char* wanted = getenv("LLM_CUDA_CUBLASLT");
  if (wanted && strcmp(wanted, "0") == 0) {
    library.report = "cuBLASLt not used: LLM_CUDA_CUBLASLT=0";
    return library;
  }
  LibrarySpec spec{"cuBLASLt", "LLM_CUBLASLT_PATH", {"libcublasLt.so.13", "libcublasLt.so.12"}, {"cu13", "cublas"}};
  // A driver older than CUDA 13 cannot run the library of 13.
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0 && driver < 13000) spec.sonames = {"libcublasLt.so.12"};
  const OpenedLibrary opened = open_library(spec);
  const std::string tried = opened.tried.empty() ? "" : " (did not open: " + opened.tried + ")";
  if (!opened.handle) {
    library.report = "cuBLASLt missing: matrix products run on our own, slower kernels. Install the CUDA toolkit or `pip install nvidia-cublas`, or set LLM_CUBLASLT_PATH" + tried;
    return library;
  }
  if (const char* missing = bind(opened.handle, library.fn)) {
    library.report = "cuBLASLt not used: " + opened.path + " has no " + missing + tried;
    return library;
  }
  library.version = library.fn.version();
  if (library.version < 120000 || library.version >= 140000) {
    library.report = "cuBLASLt not used: " + opened.path + " is version " + version_text(library.version) + ", 12.0 to 13.x wanted" + tried;
    return library;
  }
  library.usable = true;
  library.report = "cuBLASLt " + version_text(library.version) + " " + opened.path + tried;
  return library;
}

}  // namespace

const CublasLtLibrary& cublaslt_library() {
  static const CublasLtLibrary library = load();
  return library;
}

}  // namespace llm::cuda
