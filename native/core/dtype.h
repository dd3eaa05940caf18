// Element types, shared with TypeScript (packages/core/src/dtype.ts: same order).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace llm {

enum class DType : uint8_t { f32, f16, bf16, i32, i8, u8, i64 };
constexpr int kDTypes = 7;

constexpr size_t dtype_bytes(DType t) {
  constexpr size_t bytes[kDTypes] = {4, 2, 2, 4, 1, 1, 8};
  return bytes[static_cast<int>(t)];
}

constexpr const char* dtype_name(DType t) {
  constexpr const char* names[kDTypes] = {"f32", "f16", "bf16", "i32", "i8", "u8", "i64"};
  return names[static_cast<int>(t)];
}

constexpr bool is_float(DType t) { return t == DType::f32 || t == DType::f16 || t == DType::bf16; }

}  // namespace llm
