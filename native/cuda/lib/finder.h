// Finds and opens NVIDIA's shared libraries at run time. The plugin links none of them: a machine with only the driver works, slower.
//
// Where it looks, first hit wins:
//   1. the library's own variable (LLM_CUBLASLT_PATH, LLM_NCCL_PATH: a file or a folder), then LLM_CUDA_LIB_DIR (folders, ':' between)
//   2. what the process has already loaded
//   3. lib64 and lib of CUDA_HOME, CUDA_PATH and /usr/local/cuda*
//   4. the plain name: LD_LIBRARY_PATH and the system's cache
//   5. CONDA_PREFIX/lib, then NVIDIA's Python wheels: site-packages/nvidia/*/lib of VIRTUAL_ENV, CONDA_PREFIX, the python3 on PATH,
//      ~/.local, /usr, /usr/local and /opt. Python itself is not run.
// An opened library stays open: its threads and exit handlers do not survive dlclose.
#pragma once
#include <string>
#include <vector>

namespace llm::cuda {

struct LibrarySpec {
  const char* name;                 // for people
  const char* variable;             // environment variable with a file or a folder
  std::vector<std::string> sonames; // best first
  std::vector<std::string> wheels;  // folders below site-packages/nvidia
};

struct OpenedLibrary {
  void* handle = nullptr;  // null: not found
  std::string path;        // as the loader knows it
  std::string tried;       // files that were there but did not open, and why
};

OpenedLibrary open_library(const LibrarySpec& spec);

// The places of step 1, 3 and 5 that exist, in order, without opening anything.
std::vector<std::string> library_folders(const LibrarySpec& spec);

// One line a library: name, version and path, or why it is missing. Opens them. For `llm doctor`.
const char* library_report();

}  // namespace llm::cuda
