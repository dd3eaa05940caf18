// Scalar GEMM, the oracle of the others: every sum in double, in the order of k.
#include <vector>

#include "../core/threadpool.h"
#include "gemm_kernels.h"
#include "gemm_scalar.h"

namespace llm::cpu {

void gemm_reference(const GemmArgs& g) {
  if (g.m <= 0 || g.n <= 0) return;
  constexpr int64_t kColumns = 64;
  const int64_t column_blocks = (g.n + kColumns - 1) / kColumns;
  parallel_for(g.m * column_blocks, 8, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(g.k));
    int64_t row_index = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / column_blocks, j0 = task % column_blocks * kColumns;
      const int columns = static_cast<int>(g.n - j0 < kColumns ? g.n - j0 : kColumns);
      if (row_index != i) {
        for (int64_t k = 0; k < g.k; ++k) {
          row[static_cast<size_t>(k)] = load_element(g.a_type, g.a, g.trans_a ? k * g.lda + i : i * g.lda + k);
        }
        row_index = i;
      }
      double sum[kColumns] = {};
      if (g.trans_b) {
        for (int j = 0; j < columns; ++j) {
          double s = 0;
          for (int64_t k = 0; k < g.k; ++k) s += row[static_cast<size_t>(k)] * load_element(g.b_type, g.b, (j0 + j) * g.ldb + k);
          sum[j] = s;
        }
      } else {
        for (int64_t k = 0; k < g.k; ++k) {
          for (int j = 0; j < columns; ++j) sum[j] += row[static_cast<size_t>(k)] * load_element(g.b_type, g.b, k * g.ldb + j0 + j);
        }
      }
      for (int j = 0; j < columns; ++j) {
        double value = static_cast<double>(g.alpha) * sum[j];
        if (g.bias != nullptr) value += load_element(g.bias_type, g.bias, j0 + j);
        const int64_t at = i * g.ldc + j0 + j;
        if (g.beta != 0) value += static_cast<double>(g.beta) * load_element(g.c_type, g.c, at);
        store_element(g.c_type, g.c, at, static_cast<float>(value));
      }
    }
  });
}

}  // namespace llm::cpu
