// The table of tensors: an integer handle (slot | generation) names a view on a Storage. Process-wide and thread-safe.
#pragma once
#include <cstdint>

#include "core/memory.h"
#include "core/op.h"

namespace llm {

using Handle = uint32_t;  // 20 bits slot, 11 bits generation; fits a positive int32; 0 is no tensor

// The JavaScript thread that calls: owns the tensors that it makes and meets the data errors of its own commands. Set by the addon.
extern thread_local uint32_t current_owner;

struct Tensor {
  Storage* storage;
  View view;
};

Handle table_insert(Storage* storage, const View& view);  // takes over the caller's reference on the storage
Tensor table_get(Handle h);                               // throws Error(disposed) when stale; the storage is retained for the caller
Handle table_alias(Handle h);                             // a second handle on the same view
bool table_release(Handle h);                             // false when the handle was already stale
void table_release_owner(uint32_t owner);  // everything that a thread left behind
int64_t table_live();

}  // namespace llm
