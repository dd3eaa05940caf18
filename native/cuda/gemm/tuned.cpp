#include "cuda/gemm/tuned.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cctype>
#include <filesystem>
#include <fstream>

namespace llm::cuda {
namespace {

constexpr const char* kFirstLine = "llm gemm choices 1";  // the number rises when lines change their meaning
constexpr int kWords = sizeof(lt::Algo) / sizeof(uint64_t);

std::string folder() {
  const char* cache = getenv("XDG_CACHE_HOME");
  if (cache && *cache) return std::string(cache) + "/llm";
  const char* home = getenv("HOME");
  return home && *home ? std::string(home) + "/.cache/llm" : "";
}

// A line is "<shape> = <words in hex>".
std::string line_of(const std::string& shape, const lt::Algo& algo) {
  std::string line = shape + " =";
  for (uint64_t word : algo.data) {
    char text[24];
    snprintf(text, sizeof text, " %016llx", static_cast<unsigned long long>(word));
    line += text;
  }
  return line;
}

bool parse(const std::string& line, std::string& shape, lt::Algo& algo) {
  const size_t sign = line.find(" = ");
  if (sign == std::string::npos || line.size() != sign + 2 + kWords * 17) return false;
  shape = line.substr(0, sign);
  const char* at = line.c_str() + sign + 2;
  for (uint64_t& word : algo.data) {
    char* end;
    word = strtoull(at, &end, 16);
    if (end != at + 17) return false;
    at = end;
  }
  return true;
}

}  // namespace

TunedChoices::TunedChoices(const std::string& device) {
  std::string name;
  for (char c : device) name += std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' ? c : '_';
  const std::string in = folder();
  if (in.empty()) return;
  path_ = in + "/gemm-" + name + ".txt";
  merge_file();
}

const lt::Algo* TunedChoices::find(const std::string& shape) const {
  const auto at = choices_.find(shape);
  return at == choices_.end() ? nullptr : &at->second;
}

void TunedChoices::add(const std::string& shape, const lt::Algo& algo) {
  choices_[shape] = algo;
  if (path_.empty()) return;
  merge_file();
  write_file();
}

// What this process already uses stays.
void TunedChoices::merge_file() {
  std::ifstream file(path_);
  std::string line, shape;
  if (!std::getline(file, line) || line != kFirstLine) return;
  lt::Algo algo;
  while (std::getline(file, line))
    if (parse(line, shape, algo)) choices_.emplace(shape, algo);
}

void TunedChoices::write_file() const {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), error);
  const std::string draft = path_ + "." + std::to_string(getpid());
  {
    std::ofstream file(draft, std::ios::trunc);
    file << kFirstLine << '\n';
    for (const auto& [shape, algo] : choices_) file << line_of(shape, algo) << '\n';
    if (!file.flush()) {
      std::filesystem::remove(draft, error);
      return;
    }
  }
  std::filesystem::rename(draft, path_, error);
  if (error) std::filesystem::remove(draft, error);
}

}  // namespace llm::cuda
