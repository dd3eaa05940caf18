/** What `llm doctor` says about the GPU: what the CUDA plugin found, or why there is none and what to do. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { type CudaReport, cudaProblem, defaultDevice, type Device, LlmError, nativeDoctor } from "@llm/core";
import { formatBytes } from "./terminal.js";

/** What can be seen of a GPU without CUDA. */
export interface CudaFacts {
  /** "linux-x64" */
  platform: string;
  /** Package that brings the plugin. */
  packageName: string;
  /** LLM_CUDA_PLUGIN, when it is set. */
  named: string | undefined;
  /** File of the plugin, when there is one. */
  plugin: string | null;
  /** A card of NVIDIA's is on the bus. */
  card: boolean;
  /** Its driver is loaded. */
  driver: boolean;
}

export type CudaStatus =
  | {
      ok: true;
      plugin: string | null;
      name: string;
      /** "9.0" */
      computeCapability: string;
      multiprocessors: number;
      /** Newest CUDA that the driver runs, and that of the plugin: "13.0". */
      driver: string;
      runtime: string;
      memory: { totalBytes: number; freeBytes: number };
      /** One line a library. */
      libraries: string[];
      missingKernels: string[];
    }
  | { ok: false; plugin: string | null; problem: string; advice: string };

export interface DeviceStatus {
  /** Where models go when nothing is said; null: LLM_DEVICE names a device that cannot be used. */
  device: Device | null;
  deviceProblem?: string;
  cuda: CudaStatus;
}

/** 13000 → "13.0", as CUDA counts its versions. */
export const cudaVersion = (version: number): string =>
  `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;

/** What to do about a GPU that cannot be used. */
export function cudaAdvice(facts: CudaFacts, problem: string): string {
  if (facts.platform !== "linux-x64")
    return `CUDA is built for linux-x64, this is ${facts.platform}: models run on the CPU`;
  if (facts.named !== undefined && facts.plugin === null)
    return "LLM_CUDA_PLUGIN names no file: unset it, or give the path of the plugin";
  if (!facts.card && !facts.driver)
    return "no NVIDIA card is visible here: models run on the CPU (in a container, start it with the GPUs passed in)";
  if (facts.plugin === null)
    return `an NVIDIA card is here: npm install ${facts.packageName}, or in the repository LLM_CUDA=1 npm run build`;
  if (!facts.driver)
    return "an NVIDIA card is here without a driver: install NVIDIA's driver, 525 or later (in a container, start it with the GPUs passed in)";
  if (/another version of the core/.test(problem))
    return `install the same version of @llm/core and ${facts.packageName}, or in the repository build both again`;
  if (/card \d+ was asked for|LLM_CUDA_DEVICE/.test(problem))
    return "LLM_CUDA_DEVICE counts the cards that CUDA_VISIBLE_DEVICES leaves, from 0: name one of them, or unset it";
  if (/driver/.test(problem)) return "update NVIDIA's driver: nvidia-smi shows its version and the newest CUDA it runs";
  return "nvidia-smi shows whether the driver reaches the card";
}

function seen(read: () => boolean): boolean {
  try {
    return read();
  } catch {
    return false; // not there, or not for us to read
  }
}

const pciFolder = "/sys/bus/pci/devices";
const driverFiles = ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"];

/** A display controller (class 03) with NVIDIA's vendor number. */
function isNvidiaCard(device: string): boolean {
  const field = (name: string): string => readFileSync(join(pciFolder, device, name), "utf8").trim();
  return field("vendor") === "0x10de" && field("class").startsWith("0x03");
}

function gatherFacts(): CudaFacts {
  const platform = `${process.platform}-${process.arch}`;
  const packageName = `@llm/native-${platform}-cuda`;
  const named = process.env["LLM_CUDA_PLUGIN"] || undefined;
  let plugin: string | null = null;
  if (named !== undefined) plugin = existsSync(named) ? named : null;
  else {
    try {
      // As core looks for it, from where core is.
      const core = createRequire(import.meta.url).resolve("@llm/core/package.json");
      const found = createRequire(core).resolve(packageName);
      plugin = existsSync(found) ? found : null;
    } catch {
      // Not installed.
    }
  }
  return {
    platform,
    packageName,
    named,
    plugin,
    card: seen(() => readdirSync(pciFolder).some((device) => seen(() => isNvidiaCard(device)))),
    driver: driverFiles.some((path) => existsSync(path)),
  };
}

/** What the plugin reported, in words and plain units. */
export function describeCuda(report: CudaReport, plugin: string | null): CudaStatus {
  return {
    ok: true,
    plugin,
    name: report.name,
    computeCapability: `${Math.floor(report.compute / 10)}.${report.compute % 10}`,
    multiprocessors: report.multiprocessors,
    driver: cudaVersion(report.driver),
    runtime: cudaVersion(report.runtime),
    memory: { totalBytes: report.memoryBytes, freeBytes: report.freeBytes },
    libraries: report.libraries.split("\n").filter((line) => line !== ""),
    missingKernels: report.missingKernels,
  };
}

/** Opens the GPU, if there is one. */
export function deviceStatus(): DeviceStatus {
  const facts = gatherFacts();
  let problem: string | null;
  try {
    problem = cudaProblem();
  } catch (error) {
    if (!LlmError.isInstance(error)) throw error;
    problem = error.message;
  }
  const report = problem === null ? nativeDoctor().cuda : undefined;
  const cuda: CudaStatus =
    report === undefined
      ? {
          ok: false,
          plugin: facts.plugin,
          problem: problem ?? "[device] cuda: the plugin is open and reports nothing",
          advice: cudaAdvice(facts, problem ?? ""),
        }
      : describeCuda(report, facts.plugin);
  try {
    return { device: defaultDevice(), cuda };
  } catch (error) {
    if (!LlmError.isInstance(error)) throw error;
    return { device: null, deviceProblem: error.message, cuda };
  }
}

/** The rows of `llm doctor` for people: name and value; an empty name goes on with the row before. */
export function deviceRows({ device, deviceProblem, cuda }: DeviceStatus): [name: string, value: string][] {
  const rows: [string, string][] = [];
  if (cuda.ok) {
    rows.push(
      ["gpu", `${cuda.name}, compute capability ${cuda.computeCapability}, ${cuda.multiprocessors} multiprocessors`],
      ["", `${formatBytes(cuda.memory.freeBytes)} free of ${formatBytes(cuda.memory.totalBytes)}`],
      ["cuda", `driver ${cuda.driver}, runtime ${cuda.runtime}`],
      ...cuda.libraries.map((line): [string, string] => ["", line]),
      ["", cuda.missingKernels.length === 0 ? "every op has a kernel" : `no kernel: ${cuda.missingKernels.join(", ")}`],
    );
  } else {
    rows.push(["gpu", `none: ${cuda.problem}`], ["", cuda.advice]);
  }
  if (cuda.plugin !== null) rows.push(["", `plugin ${cuda.plugin}`]);
  rows.push([
    "device",
    device === null ? `LLM_DEVICE cannot be used: ${deviceProblem!}` : `${device} (--device and LLM_DEVICE choose)`,
  ]);
  return rows;
}
