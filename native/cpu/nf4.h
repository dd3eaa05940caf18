// NF4: quantiles of a standard normal, scaled to [-1, 1] (Dettmers et al. 2023, "QLoRA"). A code is found by comparing with the
// midpoints of neighbouring table entries; a value on a midpoint, and a NaN (an all-zero block scaled by 1/0), takes the lower code.
#pragma once

namespace llm {

constexpr float kNf4Table[16] = {-1.0f,
                                 -0.6961928009986877f,
                                 -0.5250730514526367f,
                                 -0.39491748809814453f,
                                 -0.28444138169288635f,
                                 -0.18477343022823334f,
                                 -0.09105003625154495f,
                                 0.0f,
                                 0.07958029955625534f,
                                 0.16093020141124725f,
                                 0.24611230194568634f,
                                 0.33791524171829224f,
                                 0.44070982933044434f,
                                 0.5626170039176941f,
                                 0.7229568362236023f,
                                 1.0f};

// Midpoint above code i.
static inline float nf4_threshold(int i) { return static_cast<float>((static_cast<double>(kNf4Table[i]) + kNf4Table[i + 1]) * 0.5); }

static inline int nf4_code(float x) {
  int code = 0;
  for (int i = 0; i < 15; i++) code += x > nf4_threshold(i);
  return code;
}

}  // namespace llm
