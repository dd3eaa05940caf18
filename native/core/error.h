// Typed errors. Thrown inside the core, caught at the addon's border and rebuilt as the LlmError subclass of the same code.
#pragma once
#include <stdexcept>
#include <string>

namespace llm {

enum class Code { options, shape, dtype, device, out_of_memory, disposed, unsupported, numeric, plan, io, internal };

constexpr const char* code_name(Code c) {
  constexpr const char* names[] = {"OPTIONS",     "SHAPE",   "DTYPE", "DEVICE", "OUT_OF_MEMORY", "DISPOSED",
                                   "UNSUPPORTED", "NUMERIC", "PLAN",  "IO",     "INTERNAL"};
  return names[static_cast<int>(c)];
}

struct Error : std::runtime_error {
  Code code;
  Error(Code c, const std::string& message) : std::runtime_error(message), code(c) {}
};

}  // namespace llm
