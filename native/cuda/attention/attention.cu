// The table of the attention family.
#include "cuda/attention/attention.h"
#include "cuda/tables.h"

namespace llm::cuda {

const CudaEntry cuda_attention[] = {{op_attention, attention_forward}, {op_attention_bwd, attention_backward}};
const int cuda_attention_count = sizeof(cuda_attention) / sizeof(cuda_attention[0]);

}  // namespace llm::cuda
