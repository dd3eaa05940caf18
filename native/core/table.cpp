#include "core/table.h"

#include <mutex>
#include <vector>

#include "core/error.h"

namespace llm {

thread_local uint32_t current_owner = 0;

namespace {

constexpr uint32_t kSlotBits = 20, kGenerations = 1u << 11, kMaxSlots = 1u << kSlotBits;

struct Slot {
  uint32_t generation = 1, owner = 0;
  Storage* storage = nullptr;  // null = free
  View view;
};

struct Table {
  std::mutex mutex;
  std::vector<Slot> slots{1};  // slot 0 stays unused
  std::vector<uint32_t> free;
  size_t head = 0;  // the free list is a queue: a slot rests as long as possible before it is used again
  int64_t live = 0;
};

Table& table() {
  static Table* t = new Table;
  return *t;
}

Slot& find(Table& t, Handle h) {
  const uint32_t slot = h & (kMaxSlots - 1), generation = h >> kSlotBits;
  if (slot == 0 || slot >= t.slots.size() || !t.slots[slot].storage || t.slots[slot].generation != generation) {
    throw Error(Code::disposed, "[tensor] the tensor was disposed (handle " + std::to_string(h) + ")");
  }
  return t.slots[slot];
}

}  // namespace

Handle table_insert(Storage* storage, const View& view) {
  Table& t = table();
  std::lock_guard lock(t.mutex);
  uint32_t slot;
  if (t.free.size() - t.head > 1024 || (t.head < t.free.size() && t.slots.size() == kMaxSlots)) {
    slot = t.free[t.head++];
    if (t.head > 4096 && t.head * 2 > t.free.size()) {
      t.free.erase(t.free.begin(), t.free.begin() + static_cast<int64_t>(t.head));
      t.head = 0;
    }
  } else if (t.slots.size() < kMaxSlots) {
    slot = static_cast<uint32_t>(t.slots.size());
    t.slots.emplace_back();
  } else {
    storage->release();
    throw Error(Code::out_of_memory, "[tensor] more than " + std::to_string(kMaxSlots - 1) + " live tensors");
  }
  t.slots[slot].storage = storage;
  t.slots[slot].view = view;
  t.slots[slot].owner = current_owner;
  t.live++;
  return slot | (t.slots[slot].generation << kSlotBits);
}

Tensor table_get(Handle h) {
  Table& t = table();
  std::lock_guard lock(t.mutex);
  Slot& slot = find(t, h);
  slot.storage->retain();
  return {slot.storage, slot.view};
}

Handle table_alias(Handle h) {
  Tensor tensor = table_get(h);
  return table_insert(tensor.storage, tensor.view);
}

namespace {

// Empties a slot and hands back its storage.
Storage* vacate(Table& t, uint32_t index) {
  Slot& slot = t.slots[index];
  Storage* storage = slot.storage;
  slot.storage = nullptr;
  slot.generation = slot.generation + 1 == kGenerations ? 1 : slot.generation + 1;
  t.free.push_back(index);
  t.live--;
  return storage;
}

}  // namespace

bool table_release(Handle h) {
  Table& t = table();
  Storage* storage;
  {
    std::lock_guard lock(t.mutex);
    const uint32_t index = h & (kMaxSlots - 1);
    if (index == 0 || index >= t.slots.size()) return false;
    if (!t.slots[index].storage || t.slots[index].generation != h >> kSlotBits) return false;
    storage = vacate(t, index);
  }
  storage->release();
  return true;
}

void table_release_owner(uint32_t owner) {
  Table& t = table();
  std::vector<Storage*> left;
  {
    std::lock_guard lock(t.mutex);
    for (uint32_t index = 1; index < t.slots.size(); index++) {
      if (t.slots[index].storage && t.slots[index].owner == owner) left.push_back(vacate(t, index));
    }
  }
  for (Storage* storage : left) storage->release();
}

int64_t table_live() {
  Table& t = table();
  std::lock_guard lock(t.mutex);
  return t.live;
}

}  // namespace llm
