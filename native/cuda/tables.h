// The kernel tables that plugin.cu merges: one a file. A later table replaces an earlier one's entry.
#pragma once
#include "cuda/kernel.cuh"

namespace llm::cuda {

#define LLM_CUDA_TABLE(name)     \
  extern const CudaEntry name[]; \
  extern const int name##_count;

LLM_CUDA_TABLE(cuda_elementwise)  // add … mul_cols, silu, casts, movement, transpose, gather
LLM_CUDA_TABLE(cuda_reduce)       // sum … mse, softmax, log_softmax, argmax, topk
LLM_CUDA_TABLE(cuda_random)
LLM_CUDA_TABLE(cuda_layers)       // embedding, norms, rope, swiglu
LLM_CUDA_TABLE(cuda_optim)
LLM_CUDA_TABLE(cuda_matmul)
LLM_CUDA_TABLE(cuda_attention)
LLM_CUDA_TABLE(cuda_loss)
LLM_CUDA_TABLE(cuda_quant)
LLM_CUDA_TABLE(cuda_fp8)
LLM_CUDA_TABLE(cuda_paged)
LLM_CUDA_TABLE(cuda_sample)

}  // namespace llm::cuda
