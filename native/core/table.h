// The table of tensors: an integer handle (slot | generation) names a view on a Storage. Process-wide and thread-safe.
#pragma once
#include <cstdint>

#include "core/memory.h"
#include "core/op.h"

namespace llm {

using Handle = uint32_t;  // 20 bits slot, 11 bits generation; fits a positive int32; 0 is no tensor

struct Tensor {
  Storage* storage;
  View view;
};

Handle table_insert(Storage* storage, const View& view);  // takes over the caller's reference on the storage
Tensor table_get(Handle h);                               // throws Error(disposed) when stale; the storage is retained for the caller
Handle table_alias(Handle h);                             // a second handle on the same view
bool table_release(Handle h);                             // false when the handle was already stale
int64_t table_live();

}  // namespace llm
