/** The numbers that we recorded, for `llm bench` to print beside those of the user's machine. From docs/benchmarks.md: medians. */
import type { Device } from "@llm/core";

export interface Recording {
  /** What they were taken on. */
  machine: string;
  /** Commit of the repository; null: nothing was recorded yet. */
  commit: string | null;
  /** Measurement → value in its unit; null: not recorded. */
  values: Readonly<Record<string, number | null>>;
}

export const recorded: Readonly<Record<Device, Recording>> = {
  cuda: {
    machine: "one NVIDIA H200",
    commit: "14a3c4f",
    values: {
      copy: 4125.7, // GB/s
      "matmul-8192": 719.3, // TFLOP/s
      "matmul-8192x18944x3584": 720, // TFLOP/s
      "attention-2k": 472.5, // TFLOP/s
      "attention-2k-backward": 384, // TFLOP/s
      "attention-8k": 611.3, // TFLOP/s
      "attention-8k-backward": 503.4, // TFLOP/s
      "rms-norm": 3597.3, // GB/s
      "rms-norm-backward": 3850.4, // GB/s
      swiglu: 4296.8, // GB/s
      "swiglu-backward": 4077.7, // GB/s
      adamw: 4242, // GB/s
      "lora-1.5b": 63595.2, // tokens/s
    },
  },
  cpu: {
    machine: "2 cores of an Intel Xeon with AMX",
    commit: "f0dd273",
    values: {
      copy: 29.8, // GB/s
      "matmul-1024": 1065.7, // GFLOP/s
      "matmul-512x4864x896": 1104.1, // GFLOP/s
      attention: 149.2, // GFLOP/s
      "attention-backward": 164.1, // GFLOP/s
      "rms-norm": 43.7, // GB/s
      "rms-norm-backward": 33.6, // GB/s
      swiglu: 38.2, // GB/s
      "swiglu-backward": 33.8, // GB/s
      adamw: 49.9, // GB/s
      "lora-0.5b-2": 275.6, // tokens/s
    },
  },
};
