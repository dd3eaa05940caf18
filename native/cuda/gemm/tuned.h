// The algorithms that timing chose, kept on disk between runs: ${XDG_CACHE_HOME:-~/.cache}/llm/gemm-<gpu>-<library version>-<driver>.txt.
// A file that is missing or damaged is as good as empty. It also keeps results the same from run to run, since two algorithms may round
// differently. Several processes may write: each merges what is there and replaces the file as a whole.
#pragma once
#include <map>
#include <string>

#include "cuda/lib/cublaslt.h"

namespace llm::cuda {

class TunedChoices {
 public:
  // `device` names GPU, library and driver. An empty folder (no home) keeps the choices in memory only.
  explicit TunedChoices(const std::string& device);
  const lt::Algo* find(const std::string& shape) const;
  void add(const std::string& shape, const lt::Algo& algo);

 private:
  void merge_file();
  void write_file() const;

  std::string path_;
  std::map<std::string, lt::Algo> choices_;
};

}  // namespace llm::cuda
