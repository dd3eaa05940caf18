#include "gemm_workspace.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace llm::cpu {
namespace {

constexpr int kSlots = static_cast<int>(Scratch::count);
constexpr size_t kHuge = size_t{2} << 20;

struct Buffers {
  void* data[kSlots] = {};
  size_t size[kSlots] = {};
  void clear() {
    for (int i = 0; i < kSlots; ++i) {
      std::free(data[i]);
      data[i] = nullptr;
      size[i] = 0;
    }
  }
  ~Buffers() { clear(); }
};

thread_local Buffers buffers;

}  // namespace

void* scratch(Scratch slot, size_t bytes) {
  const int i = static_cast<int>(slot);
  Buffers& b = buffers;
  if (b.size[i] >= bytes && b.data[i] != nullptr) return b.data[i];
  std::free(b.data[i]);
  b.data[i] = nullptr;
  b.size[i] = 0;
  size_t size = bytes < 4096 ? 4096 : bytes;
  const size_t align = size >= kHuge ? kHuge : 64;
  size = (size + align - 1) / align * align;
  void* p = std::aligned_alloc(align, size);
  if (p == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (align == kHuge) madvise(p, size, MADV_HUGEPAGE);
#endif
  b.data[i] = p;
  b.size[i] = size;
  return p;
}

void release_scratch() { buffers.clear(); }

}  // namespace llm::cpu
