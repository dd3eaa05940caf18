// The table of the quantization kernels (quant_*.cu).
#include "cuda/quant.h"
#include "cuda/tables.h"

namespace llm::cuda {

const CudaEntry cuda_quant[] = {
    {op_quantize_w4, quantize_w4},   {op_dequantize_w4, dequantize_w4},   {op_repack_w4, repack_w4},
    {op_linear_w4, linear_w4},       {op_quantize_q8, quantize_q8},       {op_dequantize_q8, dequantize_q8},
    {op_repack_q8, repack_q8},       {op_linear_q8, linear_q8},           {op_quantize_nf4, quantize_nf4},
    {op_dequantize_nf4, dequantize_nf4}, {op_awq_clip_search, awq_clip_search},
};
const int cuda_quant_count = sizeof(cuda_quant) / sizeof(cuda_quant[0]);

}  // namespace llm::cuda
