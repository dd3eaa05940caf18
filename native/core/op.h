// What an op is to the core: a line of ops.def, a shape rule (native/ops/*.cpp, shared by all devices) and a kernel per device.
// Everything a kernel sees is plain data, so that ISA-specific files need no C++ library.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace llm {

constexpr int kMaxDims = 6;

// A typed, strided window on memory. Strides count elements. An absent optional input has data == nullptr and ndim == -1.
struct View {
  char* data = nullptr;
  DType dtype = DType::f32;
  int ndim = -1;
  int64_t shape[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};
};

static inline int64_t view_numel(const View& v) {
  int64_t n = 1;
  for (int i = 0; i < v.ndim; i++) n *= v.shape[i];
  return v.ndim < 0 ? 0 : n;
}

struct KernelArgs {
  const View* in;  // in ops.def order; variadic inputs follow one another
  int n_in;
  View* out;
  int n_out;
  const double* attr;
  int n_attr;
};

// Runs the op. Returns nullptr, or a static text that says what in the DATA was wrong (a bad id, a non-finite value); the text
// surfaces at the next read together with the op's name. Shapes and dtypes were checked before by the shape rule.
using Kernel = const char* (*)(const KernelArgs&);

struct KernelEntry {
  int op;  // llm::Op
  Kernel kernel;
};

}  // namespace llm
