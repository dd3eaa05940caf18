#include "cpu/packed.h"

namespace llm {

int64_t packed_w4_bytes(int64_t n, int64_t c, int64_t group) {
  const int64_t groups = (c + group - 1) / group;
  return n * (c / 2 + groups * 5);
}

int64_t packed_q8_bytes(int64_t n, int64_t c, int64_t group) {
  const int64_t groups = (c + group - 1) / group;
  return n * (c + groups * 4);
}

}  // namespace llm
