// Tensor maps for the copy engine: how a view [T, heads, D] of 16-bit elements is cut into boxes of rows x one head.
#pragma once
#include <cuda.h>

#include "cuda/kernel.cuh"

namespace llm::cuda {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function; the program does not link the driver. nullptr when the driver lacks it.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    return e == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(found) : nullptr;
  }();
  return function;
}

// Whether the copy engine can read the view: D a multiple of 64, heads dense, rows apart by a positive multiple of 16 bytes.
inline bool tensor_map_fits(const View& v) {
  return dtype_bytes(v.dtype) == 2 && v.shape[2] % 64 == 0 && aligned16(v.data) && v.shape[0] > 0 && v.stride[0] > 0 && v.stride[0] % 8 == 0 &&
         v.shape[0] < (int64_t{1} << 31) && v.stride[0] < (int64_t{1} << 38);
}

// A map of four dims: (64 elements, row, panel of 64, head), box (64, rows, panels, 1): one copy moves `rows` rows of a head as panels of
// [rows, 64], swizzled by 128 bytes; panels = 0: all D / 64. Coordinates: (0, row, panel, head).
inline bool encode_heads(CUtensorMap* map, const View& v, int rows, int box_panels = 0) {
  if (!tensor_map_fits(v) || encode_tiled() == nullptr) return false;
  const cuuint64_t panels = static_cast<cuuint64_t>(v.shape[2] / 64);
  const cuuint64_t dims[4] = {64, static_cast<cuuint64_t>(v.shape[0]), panels, static_cast<cuuint64_t>(v.shape[1])};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(v.stride[0]) * 2, 128, static_cast<cuuint64_t>(v.shape[2]) * 2};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(box_panels ? box_panels : v.shape[2] / 64), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType type = v.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode_tiled()(map, type, 4, v.data, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace llm::cuda
