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
    commit: "a14744c",
    values: {
      copy: null, // GB/s
      "matmul-8192": null, // TFLOP/s
      "matmul-8192x18944x3584": null, // TFLOP/s
      "attention-2k": null, // TFLOP/s
      "attention-2k-backward": null, // TFLOP/s
      "attention-8k": null, // TFLOP/s
      "attention-8k-backward": null, // TFLOP/s
      "rms-norm": null, // GB/s
      "rms-norm-backward": null, // GB/s
      swiglu: null, // GB/s
      "swiglu-backward": null, // GB/s
      adamw: null, // GB/s
      "lora-1.5b": 66039, // tokens/s
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
