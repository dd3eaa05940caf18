// Sizes of the packed weights that repack_w4 and repack_q8 write and linear_w4 and linear_q8 read on this CPU.
#pragma once
#include <cstdint>

namespace llm {

int64_t packed_w4_bytes(int64_t n, int64_t c, int64_t group);
int64_t packed_q8_bytes(int64_t n, int64_t c, int64_t group);

}  // namespace llm
