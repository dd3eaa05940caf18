// The part of cuBLASLt that the products use, declared here so that no header of the library is needed to build (it is opened at run
// time, see finder.h). Names and values are those of cuBLASLt 12 and 13; tests/abi_check.cu compares them with the real header.
#pragma once
#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstdint>
#include <string>

namespace llm::cuda::lt {

using Status = int;
constexpr Status kSuccess = 0;

// Opaque to us; the library reads and writes them.
struct HandleStruct;
struct DescStruct;
struct LayoutStruct;
struct PreferenceStruct;
using Handle = HandleStruct*;
using Desc = DescStruct*;
using Layout = LayoutStruct*;
using Preference = PreferenceStruct*;

// Plain bytes: may be written to disk and used again with the same version of the library.
struct Algo {
  uint64_t data[8];
};
struct Candidate {
  Algo algo;
  size_t workspace;  // bytes that it needs
  Status state;      // the rest is valid when this is kSuccess
  float waves;
  int reserved[4];
};

constexpr int kCompute32F = 68;  // f32 products and sums; 16-bit operands are multiplied exactly
constexpr int32_t kOpN = 0, kOpT = 1;

enum DescAttribute : int {
  kDescTransA = 3,
  kDescTransB = 4,
  kDescEpilogue = 7,
  kDescBiasPointer = 8,
  kDescScalePointerA = 17,
  kDescScalePointerB = 18,
  kDescFastAccumulation = 25,
  kDescBiasType = 26,
  kDescScaleModeA = 31,  // from 12.8 on
  kDescScaleModeB = 32
};
// An f32 scale for each row of A^T or column of B (12.9 on, Hopper).
constexpr int32_t kScaleOuterVector = 3;
enum PreferenceAttribute : int {
  kPrefWorkspace = 1,
  kPrefReduction = 3,
  kPrefAlignA = 5,
  kPrefAlignB = 6,
  kPrefAlignC = 7,
  kPrefAlignD = 8
};
enum Epilogue : uint32_t { kEpilogueDefault = 1, kEpilogueBias = 4 };
// How pieces of a sum over k come together: in f32 through the workspace. (1: in C itself, 4: rounded to C's dtype.)
constexpr uint32_t kReductionF32 = 2;

struct Functions {
  size_t (*version)();
  Status (*create)(Handle*);
  const char* (*status_text)(Status);
  Status (*desc_create)(Desc*, int compute, cudaDataType_t scale);
  Status (*desc_destroy)(Desc);
  Status (*desc_set)(Desc, DescAttribute, const void*, size_t);
  Status (*layout_create)(Layout*, cudaDataType_t, uint64_t rows, uint64_t cols, int64_t ld);
  Status (*layout_destroy)(Layout);
  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, PreferenceAttribute, const void*, size_t);
  Status (*heuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int wanted, Candidate*, int* found);
  Status (*check)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, const Algo*, Candidate*);
  Status (*matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta, const void* c, Layout, void* d, Layout,
                   const Algo*, void* workspace, size_t workspace_bytes, cudaStream_t);
};

}  // namespace llm::cuda::lt

namespace llm::cuda {

struct CublasLtLibrary {
  bool usable = false;
  lt::Functions fn{};
  size_t version = 0;  // 130200 = 13.2.0
  std::string report;  // "cuBLASLt 13.2.0 /usr/…/libcublasLt.so.13", or why not
};

// Opened by the first call. LLM_CUDA_CUBLASLT=0 leaves it closed.
const CublasLtLibrary& cublaslt_library();

}  // namespace llm::cuda
