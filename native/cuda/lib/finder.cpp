#include "cuda/lib/finder.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "cuda/lib/cublaslt.h"
#include "cuda/lib/nccl.h"

namespace llm::cuda {
namespace {

namespace fs = std::filesystem;
using Paths = std::vector<std::string>;

std::string variable(const char* name) {
  const char* value = getenv(name);
  return value ? value : "";
}

Paths split(const std::string& list) {
  Paths parts;
  for (size_t from = 0; from <= list.size();) {
    const size_t to = std::min(list.find(':', from), list.size());
    if (to > from) parts.push_back(list.substr(from, to - from));
    from = to + 1;
  }
  return parts;
}

void add_folder(Paths& to, const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) return;
  const std::string text = folder.lexically_normal().string();
  if (std::find(to.begin(), to.end(), text) == to.end()) to.push_back(text);
}

// Folders in `parent` whose names start with `prefix`, the highest name first (cuda-13.0 before cuda-12.4).
std::vector<fs::path> children(const fs::path& parent, const std::string& prefix) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator i(parent, fs::directory_options::skip_permission_denied, error), end; !error && i != end; i.increment(error)) {
    std::error_code ignored;
    if (i->path().filename().string().rfind(prefix, 0) == 0 && i->is_directory(ignored)) found.push_back(i->path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

// Wheel folders below the Python installation at `prefix`.
void add_wheels(Paths& to, const fs::path& prefix, const Paths& wheels) {
  for (const fs::path& python : children(prefix / "lib", "python3"))
    for (const char* site : {"site-packages", "dist-packages"})
      for (const std::string& wheel : wheels) add_folder(to, python / site / "nvidia" / wheel / "lib");
}

// Prefixes of the python3 on PATH: bin/.. at every step of its chain of symbolic links, since a virtual environment is one of them and
// the installation that it was made from (`home` in pyvenv.cfg) may hold packages too.
std::vector<fs::path> python_prefixes() {
  std::vector<fs::path> prefixes;
  std::error_code error;
  for (const std::string& folder : split(variable("PATH"))) {
    fs::path python = fs::path(folder) / "python3";
    if (access(python.c_str(), X_OK) != 0) continue;
    for (int links = 0; links < 16; links++) {
      const fs::path prefix = python.parent_path().parent_path();
      prefixes.push_back(prefix);
      std::ifstream settings(prefix / "pyvenv.cfg");
      for (std::string line; std::getline(settings, line);) {
        const size_t value = line.find_first_not_of(" =", 4);
        if (line.rfind("home", 0) == 0 && value != std::string::npos) prefixes.push_back(fs::path(line.substr(value)).parent_path());
      }
      if (!fs::is_symlink(python, error)) break;
      const fs::path target = fs::read_symlink(python, error);
      if (error) break;
      python = target.is_absolute() ? target : python.parent_path() / target;
    }
    break;
  }
  return prefixes;
}

void add_toolkits(Paths& to) {
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"})
    if (const std::string home = variable(name); !home.empty())
      for (const char* lib : {"lib64", "lib"}) add_folder(to, fs::path(home) / lib);
  add_folder(to, "/usr/local/cuda/lib64");
  for (const fs::path& home : children("/usr/local", "cuda-")) add_folder(to, home / "lib64");
}

void add_python(Paths& to, const Paths& wheels) {
  if (const std::string conda = variable("CONDA_PREFIX"); !conda.empty()) {
    add_folder(to, fs::path(conda) / "lib");
    add_wheels(to, conda, wheels);
  }
  if (const std::string venv = variable("VIRTUAL_ENV"); !venv.empty()) add_wheels(to, venv, wheels);
  for (const fs::path& prefix : python_prefixes()) add_wheels(to, prefix, wheels);
  if (const std::string home = variable("HOME"); !home.empty()) add_wheels(to, fs::path(home) / ".local", wheels);
  for (const char* prefix : {"/usr", "/usr/local"}) add_wheels(to, prefix, wheels);
  for (const std::string& wheel : wheels) add_folder(to, fs::path("/usr/lib/python3/dist-packages/nvidia") / wheel / "lib");
  for (const fs::path& prefix : children("/opt", ""))
    for (const char* inner : {"", ".venv", "venv"}) add_wheels(to, prefix / inner, wheels);
}

void note(std::string& tried, const std::string& path, const char* why) {
  // The loader's text starts with the path more often than not.
  const std::string text = why ? why : "does not open";
  if (!tried.empty()) tried += "; ";
  tried += text.find(path) == std::string::npos ? path + ": " + text : text;
}

// Opens a file. When a library that it needs is missing, looks for that one in the same folder first.
void* open_file(const std::string& path, std::string& tried) {
  std::string why;
  for (int attempt = 0; attempt < 4; attempt++) {
    if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    const char* text = dlerror();
    why = text ? text : "";
    // "libx.so.1: cannot open shared object file: No such file or directory"
    const std::string needed = why.substr(0, why.find(':'));
    const fs::path sibling = fs::path(path).parent_path() / needed;
    std::error_code error;
    if (needed.empty() || needed.find('/') != std::string::npos || !fs::exists(sibling, error) || !dlopen(sibling.c_str(), RTLD_NOW | RTLD_LOCAL)) break;
  }
  note(tried, path, why.empty() ? nullptr : why.c_str());
  return nullptr;
}

bool try_folder(const LibrarySpec& spec, const fs::path& folder, OpenedLibrary& result) {
  for (const std::string& soname : spec.sonames) {
    const fs::path file = folder / soname;
    if (access(file.c_str(), R_OK) == 0 && (result.handle = open_file(file.string(), result.tried))) return true;
  }
  return false;
}

// As its own variable says: a file, or a folder.
bool try_variable(const LibrarySpec& spec, OpenedLibrary& result) {
  const std::string path = variable(spec.variable);
  if (path.empty()) return false;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    if (try_folder(spec, path, result)) return true;
    note(result.tried, std::string(spec.variable) + "=" + path, "the library is not in this folder");
    return false;
  }
  result.handle = open_file(path, result.tried);
  return result.handle != nullptr;
}

}  // namespace

std::vector<std::string> library_folders(const LibrarySpec& spec) {
  Paths folders;
  for (const std::string& folder : split(variable("LLM_CUDA_LIB_DIR"))) add_folder(folders, folder);
  add_toolkits(folders);
  add_python(folders, spec.wheels);
  return folders;
}

OpenedLibrary open_library(const LibrarySpec& spec) {
  OpenedLibrary result;
  auto found = [&] {
    if (try_variable(spec, result)) return true;
    for (const std::string& folder : split(variable("LLM_CUDA_LIB_DIR")))
      if (try_folder(spec, folder, result)) return true;
    for (const std::string& soname : spec.sonames)
      if ((result.handle = dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD))) return true;
    Paths folders;
    add_toolkits(folders);
    for (const std::string& folder : folders)
      if (try_folder(spec, folder, result)) return true;
    for (const std::string& soname : spec.sonames)
      if ((result.handle = dlopen(soname.c_str(), RTLD_NOW | RTLD_LOCAL))) return true;
    folders.clear();
    add_python(folders, spec.wheels);
    for (const std::string& folder : folders)
      if (try_folder(spec, folder, result)) return true;
    return false;
  };
  if (found()) {
    link_map* map = nullptr;
    if (dlinfo(result.handle, RTLD_DI_LINKMAP, &map) == 0 && map) result.path = map->l_name;
  }
  return result;
}

const char* library_report() {
  static const std::string report = cublaslt_library().report + "\n" + nccl_library().report;
  return report.c_str();
}

}  // namespace llm::cuda
