#include "isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace llm::cpu {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};

struct Machine {
  Isa isa = Isa::scalar;
  bool amd = false;
  char model[49] = "unknown";
};

#if defined(__x86_64__)
uint64_t read_xcr0() {
  uint32_t lo = 0, hi = 0;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return static_cast<uint64_t>(hi) << 32 | lo;
}

// Tile registers are 8 KiB of state: Linux gives them only to processes that ask, for all threads at once.
bool tiles_allowed() {
#if defined(__linux__) && defined(LLM_HAVE_AMX)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Machine detect() {
  Machine m;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(0, &a, &b, &c, &d)) m.amd = c == 0x444d4163;  // "cAMD", the end of AuthenticAMD
  unsigned text[12];
  if (__get_cpuid(0x80000002u, &text[0], &text[1], &text[2], &text[3]) &&
      __get_cpuid(0x80000003u, &text[4], &text[5], &text[6], &text[7]) &&
      __get_cpuid(0x80000004u, &text[8], &text[9], &text[10], &text[11])) {
    std::memcpy(m.model, text, 48);
    m.model[48] = 0;
  }
  if (!__get_cpuid(1, &a, &b, &c, &d)) return m;
  const bool fma = (c >> 12 & 1) != 0, osxsave = (c >> 27 & 1) != 0, avx = (c >> 28 & 1) != 0, f16c = (c >> 29 & 1) != 0;
  if (!fma || !osxsave || !avx || !f16c) return m;
  const uint64_t xcr0 = read_xcr0();
  if ((xcr0 & 0x6) != 0x6) return m;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return m;
  if ((b >> 5 & 1) == 0) return m;
  m.isa = Isa::avx2;
  const bool f = (b >> 16 & 1) != 0, dq = (b >> 17 & 1) != 0, bw = (b >> 30 & 1) != 0, vl = (b >> 31 & 1) != 0;
  const bool vnni = (c >> 11 & 1) != 0;
  if (!f || !dq || !bw || !vl || !vnni || (xcr0 & 0xe6) != 0xe6) return m;
  m.isa = Isa::avx512;
  const bool tiles = (d >> 22 & 1) != 0 && (d >> 24 & 1) != 0 && (xcr0 >> 17 & 3) == 3;
  if (a < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a >> 5 & 1) == 0) return m;
  m.isa = Isa::avx512bf16;
  if (tiles && tiles_allowed()) m.isa = Isa::amx;
  return m;
}
#else
Machine detect() { return {}; }
#endif

const Machine& machine() {
  static const Machine value = detect();
  return value;
}

struct Choice {
  Isa isa;
  std::string error;
};

const Choice& choice() {
  static const Choice value = [] {
    Choice c{machine().isa, {}};
    const char* text = std::getenv("LLM_CPU_ISA");
    if (text == nullptr || *text == 0) return c;
    for (int i = 0; i < kIsaCount; ++i) {
      if (std::strcmp(text, kNames[i]) != 0) continue;
      if (i <= static_cast<int>(c.isa)) {
        c.isa = static_cast<Isa>(i);
      } else {
        c.error = std::string("[isa] LLM_CPU_ISA=") + text + " is more than this machine has (" + kNames[static_cast<int>(c.isa)] + ")";
      }
      return c;
    }
    c.error = std::string("[isa] LLM_CPU_ISA must be scalar, avx2, avx512, avx512bf16 or amx, got \"") + text + "\"";
    return c;
  }();
  return value;
}

std::atomic<int> forced_isa{-1};
std::atomic<int> forced_bf16_dot{-1};

}  // namespace

Isa detected_isa() { return machine().isa; }

Isa active_isa() {
  const int forced = forced_isa.load(std::memory_order_relaxed);
  return forced >= 0 ? static_cast<Isa>(forced) : choice().isa;
}

const char* isa_error() { return choice().error.empty() ? nullptr : choice().error.c_str(); }

bool set_active_isa(Isa isa) {
  if (isa > machine().isa) return false;
  forced_isa.store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const char* cpu_model_name() { return machine().model; }

bool bf16_dot_is_fast() {
  const int forced = forced_bf16_dot.load(std::memory_order_relaxed);
  return forced >= 0 ? forced != 0 : machine().amd;
}

void set_bf16_dot(bool use) { forced_bf16_dot.store(use ? 1 : 0, std::memory_order_relaxed); }

}  // namespace llm::cpu
