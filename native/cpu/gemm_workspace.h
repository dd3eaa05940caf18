// Scratch memory of the matrix kernels: per thread, grown on demand and kept, so that steady state allocates nothing.
#pragma once

#include <cstddef>

namespace llm::cpu {

/// Independent buffers of one thread; a buffer's contents last until the same thread asks for the same slot again.
enum class Scratch { shared_a, panel_a, panel_b, tile, rows, bias, quant, sums, count };

/// At least `bytes` bytes, 64-byte aligned (2 MiB aligned and on huge pages where the system offers them, from 2 MiB on).
/// @throws std::bad_alloc
void* scratch(Scratch slot, size_t bytes);

/// Frees the calling thread's buffers (they are also freed when the thread ends).
void release_scratch();

}  // namespace llm::cpu
