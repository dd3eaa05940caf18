import type { CudaReport } from "@llm/core";
import { describe, expect, test } from "vitest";
import { cudaAdvice, type CudaFacts, cudaVersion, describeCuda, deviceRows } from "./doctor-cuda.js";

const facts: CudaFacts = {
  platform: "linux-x64",
  packageName: "@llm/native-linux-x64-cuda",
  named: undefined,
  plugin: "plugin.so",
  card: true,
  driver: true,
};

const report: CudaReport = {
  name: "NVIDIA H200",
  compute: 90,
  multiprocessors: 132,
  driver: 13000,
  runtime: 12040,
  memoryBytes: 150e9,
  freeBytes: 120e9,
  scratchBytes: 0,
  libraries: "cuBLASLt 13.1 lib/libcublasLt.so.13\nNCCL missing",
  missingKernels: [],
};

describe("advice about a GPU that cannot be used", () => {
  test.each<[string, Partial<CudaFacts>, string, string]>([
    ["another platform", { platform: "darwin-arm64" }, "", "this is darwin-arm64"],
    ["LLM_CUDA_PLUGIN names nothing", { named: "x.so", plugin: null }, "", "LLM_CUDA_PLUGIN names no file"],
    ["no card", { card: false, driver: false, plugin: null }, "", "no NVIDIA card is visible"],
    ["no plugin", { plugin: null }, "", "npm install @llm/native-linux-x64-cuda"],
    ["no plugin in a container", { plugin: null, card: false }, "", "npm install @llm/native-linux-x64-cuda"],
    ["no driver", { driver: false }, "no NVIDIA driver is installed", "install NVIDIA's driver"],
    ["another build", {}, "x.so was built for another version of the core; build both again", "the same version"],
    ["no such card", {}, "[device] cuda: card 3 was asked for, there are 1", "LLM_CUDA_DEVICE counts"],
    ["an old driver", {}, "[device] cuda: the driver is older than CUDA 12", "update NVIDIA's driver"],
    ["something else", {}, "[device] cuda: out of memory", "nvidia-smi shows"],
  ])("%s", (_, change, problem, advice) => {
    expect(cudaAdvice({ ...facts, ...change }, problem)).toContain(advice);
  });
});

describe("a GPU's rows", () => {
  test("versions are written as CUDA writes them", () => {
    expect([13000, 12040, 12080].map(cudaVersion)).toEqual(["13.0", "12.4", "12.8"]);
  });

  test("name, memory, versions, libraries, kernels, plugin", () => {
    const cuda = describeCuda(report, "plugin.so");
    expect(cuda).toMatchObject({ ok: true, computeCapability: "9.0", driver: "13.0", runtime: "12.4" });
    expect(deviceRows({ device: "cuda", cuda })).toEqual([
      ["gpu", "NVIDIA H200, compute capability 9.0, 132 multiprocessors"],
      ["", "120 GB free of 150 GB"],
      ["cuda", "driver 13.0, runtime 12.4"],
      ["", "cuBLASLt 13.1 lib/libcublasLt.so.13"],
      ["", "NCCL missing"],
      ["", "every op has a kernel"],
      ["", "plugin plugin.so"],
      ["device", "cuda (--device and LLM_DEVICE choose)"],
    ]);
    const gaps = describeCuda({ ...report, compute: 86, missingKernels: ["sample", "topk"] }, null);
    const rows = deviceRows({ device: "cuda", cuda: gaps }).map(([, value]) => value);
    expect(rows).toContain("no kernel: sample, topk");
    expect(rows[0]).toContain("compute capability 8.6");
  });
});
