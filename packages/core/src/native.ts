/** Finds, loads and talks to the native core. The only file that touches the addon. */
import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import { isMainThread } from "node:worker_threads";
import { type Device, currentDevice, devices } from "./device.js";
import { type DType, dtypes } from "./dtype.js";
import {
  DeviceError,
  DisposedError,
  DTypeError,
  IoError,
  LlmError,
  type LlmErrorCode,
  NumericError,
  OptionsError,
  OutOfMemoryError,
  PlanError,
  ShapeError,
  UnsupportedError,
} from "./errors.js";
import { abi } from "./gen/ops.js";
import { Tensor } from "./tensor.js";

/** What memory is used for; appears in memory reports and out-of-memory messages. Order is shared with native/core/memory.h. */
export type MemoryTag = "other" | "weights" | "gradients" | "optimizer" | "activations" | "kv" | "workspace";
const tags: readonly MemoryTag[] = ["other", "weights", "gradients", "optimizer", "activations", "kv", "workspace"];

/** Bytes held by the native core. */
export interface MemoryReport {
  liveBytes: number;
  peakBytes: number;
  cachedBytes: number;
  /** 0 = no limit. */
  limitBytes: number;
  liveTensors: number;
  byTag: Record<MemoryTag, number>;
}

/** What the native core found on this machine: instruction set, threads, the kernel variant of each op. */
export interface DoctorReport {
  /** Instruction set in use, e.g. "avx512bf16"; LLM_CPU_ISA lowers it. */
  isa: string;
  detectedIsa: string;
  threads: number;
  /** Variant that each op runs: op name to "scalar" | "avx2" | …. */
  kernels: Record<string, string>;
  /** Path of the loaded addon. */
  path: string;
  /** The GPU, when one is open (`requireDevice("cuda")` opens it). */
  cuda?: CudaReport;
}

/** What the CUDA plugin found. */
export interface CudaReport {
  name: string;
  /** Compute capability times ten: 90 is 9.0. */
  compute: number;
  multiprocessors: number;
  /** Newest CUDA version of the driver, and that of the runtime in the plugin: 13000 is 13.0. */
  driver: number;
  runtime: number;
  memoryBytes: number;
  freeBytes: number;
  /** Physical memory behind the kernels' scratch space. */
  scratchBytes: number;
  /** One line a library: where it was found, or what was tried. */
  libraries: string;
  /** Ops of the table without a kernel on the GPU. */
  missingKernels: string[];
}

interface Addon {
  setup(i32: Int32Array, f64: Float64Array): number;
  submit(op: number, inputs: number, attributes: number): number;
  empty(dtype: number, ndim: number, tag: number, device: number): number;
  map(path: string, offset: number, bytes: number, dtype: number, ndim: number, tag: number): number;
  view(handle: number, ndim: number, offset: number): number;
  alias(handle: number): number;
  release(handle: number): boolean;
  write(handle: number, data: ArrayBufferView): void;
  read(handle: number, data: ArrayBufferView): void;
  to(handle: number, device: number, tag: number): number;
  readAsync(handle: number, data: ArrayBufferView): Promise<void>;
  wait(): void;
  openDevice(path: string, card: number): void;
  profile(on: number): void;
  profileRead(records: Float64Array): number;
  memory(device: number): MemoryReport;
  memoryLimit(device: number, bytes: number): void;
  memoryTrim(device: number): void;
  runInline(on: number): void;
  planRecord(): number;
  planStop(): void;
  planReplay(plan: number): void;
  planSize(plan: number): number;
  planFree(plan: number): void;
  doctor(): Omit<DoctorReport, "path">;
}

// Shared with the addon: handles and shapes in i32, attributes in f64.
const i32 = new Int32Array(1 << 16);
const f64 = new Float64Array(256);
const intsPerOutput = 10;

let addon: Addon | undefined;
let addonPath = "";

const errorClasses: Partial<Record<LlmErrorCode, new (m: string, d?: Record<string, unknown>) => LlmError>> = {
  OPTIONS: OptionsError,
  SHAPE: ShapeError,
  DTYPE: DTypeError,
  DEVICE: DeviceError,
  OUT_OF_MEMORY: OutOfMemoryError,
  DISPOSED: DisposedError,
  UNSUPPORTED: UnsupportedError,
  NUMERIC: NumericError,
  PLAN: PlanError,
  IO: IoError,
};

/** Rebuilds the addon's error as the LlmError subclass of its code, with the caller's stack. */
function rethrow(error: unknown): never {
  const { code, message } = error as { code?: LlmErrorCode; message: string };
  const Class = code === undefined ? undefined : errorClasses[code];
  throw Class ? new Class(message) : new LlmError("INTERNAL", message, {}, error);
}

function call<T>(fn: (a: Addon) => T): T {
  const a = addon ?? load();
  try {
    return fn(a);
  } catch (error) {
    return rethrow(error);
  }
}

/** Places where the addon may be, in order: LLM_NATIVE, then the platform package. */
function candidates(): { path: string; why: string }[] {
  const require = createRequire(import.meta.url);
  const list: { path: string; why: string }[] = [];
  const named = process.env["LLM_NATIVE"];
  if (named) return [{ path: named, why: "LLM_NATIVE" }];
  const packageName = `@llm/native-${process.platform}-${process.arch}`;
  try {
    list.push({ path: require.resolve(packageName), why: packageName });
  } catch (error) {
    list.push({ path: "", why: `${packageName}: ${(error as Error).message.split("\n")[0]}` });
  }
  return list;
}

const registryKey = Symbol.for("@llm/core.native");

function load(): Addon {
  const shared = globalThis as { [registryKey]?: { abi: number; url: string } };
  const other = shared[registryKey];
  if (other && other.url !== import.meta.url) {
    throw new LlmError(
      "DUPLICATE_CORE",
      `[core] two copies of @llm/core are loaded: ${other.url} and ${import.meta.url}; run "npm dedupe" so that all packages share one`,
      { first: other.url, second: import.meta.url },
    );
  }
  const tried: string[] = [];
  for (const { path, why } of candidates()) {
    if (!path || !existsSync(path)) {
      tried.push(path ? `${path}: no such file` : why);
      continue;
    }
    let loaded: Addon;
    try {
      loaded = createRequire(import.meta.url)(path) as Addon;
    } catch (error) {
      tried.push(`${path}: ${(error as Error).message}`);
      continue;
    }
    let found: number;
    try {
      found = loaded.setup(i32, f64);
    } catch (error) {
      return rethrow(error); // LLM_CPU_ISA or LLM_NUM_THREADS is wrong
    }
    if (found !== abi) {
      tried.push(`${path}: built from another op table (${found}, this package needs ${abi})`);
      continue;
    }
    shared[registryKey] = { abi, url: import.meta.url };
    addonPath = path;
    addon = loaded;
    if (isMainThread) process.once("exit", () => finish(loaded));
    return loaded;
  }
  throw new LlmError(
    "NATIVE_MISSING",
    `[core] the native core could not be loaded:\n  ${tried.join("\n  ")}\nInstall @llm/native-${process.platform}-${process.arch}, or in the repository run: npm run build`,
    { tried },
  );
}

/**
 * The process ends: what is queued runs to its end first. Otherwise the libraries' exit handlers would take down what a command is using, or
 * loading for the first time.
 */
function finish(a: Addon): void {
  try {
    a.wait();
  } catch {
    // Bad data that nobody will read.
  }
}

/** Runs one op of the table: hands over handles and attributes, wraps the outputs. Bare: no gradients. */
export function submit(op: number, inputs: readonly (Tensor | null)[], attributes: readonly number[]): Tensor[] {
  const a = addon ?? load();
  for (let i = 0; i < inputs.length; i++) i32[i] = inputs[i] === null ? 0 : inputs[i]!.handle;
  for (let i = 0; i < attributes.length; i++) f64[i] = attributes[i]!;
  let count: number;
  try {
    count = a.submit(op, inputs.length, attributes.length);
  } catch (error) {
    return rethrow(error);
  }
  const outputs: Tensor[] = new Array(count);
  for (let o = 0, at = 0; o < count; o++, at += intsPerOutput) {
    const ndim = i32[at + 3]!;
    const shape: number[] = new Array(ndim);
    for (let d = 0; d < ndim; d++) shape[d] = i32[at + 4 + d]!;
    outputs[o] = new Tensor(i32[at]!, dtypes[i32[at + 1]!]!, shape, devices[i32[at + 2]!]!);
  }
  return outputs;
}

function putShape(shape: readonly number[]): void {
  for (let i = 0; i < shape.length; i++) {
    const size = shape[i]!;
    if (!(Number.isInteger(size) && size >= 0 && size <= 0x7fffffff))
      throw new ShapeError(`[tensor] sizes must be integers in [0, 2^31), got [${shape.join(", ")}]`);
    i32[i] = size;
  }
}

/** Uninitialised memory. */
export function nativeEmpty(dtype: DType, shape: readonly number[], tag: MemoryTag, device: Device): number {
  return call((a) => {
    putShape(shape);
    return a.empty(dtypes.indexOf(dtype), shape.length, tags.indexOf(tag), devices.indexOf(device));
  });
}

/** A tensor on a file's bytes, mapped copy-on-write: nothing is read until it is touched. */
export function nativeMap(
  path: string,
  offset: number,
  bytes: number,
  dtype: DType,
  shape: readonly number[],
  tag: MemoryTag,
): number {
  return call((a) => {
    putShape(shape);
    return a.map(path, offset, bytes, dtypes.indexOf(dtype), shape.length, tags.indexOf(tag));
  });
}

/** A view with its own shape and strides (in elements), `offset` elements from the start of `handle`'s view. */
export function nativeView(
  handle: number,
  shape: readonly number[],
  strides: readonly number[],
  offset: number,
): number {
  return call((a) => {
    putShape(shape);
    for (let i = 0; i < strides.length; i++) f64[i] = strides[i]!;
    return a.view(handle, shape.length, offset);
  });
}

export const nativeAlias = (handle: number): number => call((a) => a.alias(handle));
export const nativeRelease = (handle: number): boolean => call((a) => a.release(handle));
export const nativeWrite = (handle: number, data: ArrayBufferView): void => call((a) => a.write(handle, data));
export const nativeRead = (handle: number, data: ArrayBufferView): void => call((a) => a.read(handle, data));
/** A dense copy on another device, in queue order. */
export const nativeTo = (handle: number, device: Device, tag: MemoryTag): number =>
  call((a) => a.to(handle, devices.indexOf(device), tags.indexOf(tag)));
/** Resolves when the tensor's bits are in `data`. @throws {NumericError} bad data met on the way */
export const nativeReadAsync = async (handle: number, data: ArrayBufferView): Promise<void> => {
  await call((a) => a.readAsync(handle, data)).catch(rethrow);
};

/** Opens the CUDA plugin: LLM_CUDA_PLUGIN, else the package of this platform. @throws {DeviceError} it is missing, or there is no GPU */
export function nativeOpenCuda(): void {
  const packageName = `@llm/native-${process.platform}-${process.arch}-cuda`;
  let path = process.env["LLM_CUDA_PLUGIN"];
  if (!path) {
    try {
      path = createRequire(import.meta.url).resolve(packageName);
    } catch {
      throw new DeviceError(
        `[device] cuda: the plugin ${packageName} is not installed; install it, or in the repository build it with LLM_CUDA=1 npm run build`,
      );
    }
  }
  if (!existsSync(path))
    throw new DeviceError(`[device] cuda: the plugin was not built: no such file ${path}`, { path });
  const card = Number(process.env["LLM_CUDA_DEVICE"] ?? 0);
  if (!Number.isInteger(card) || card < 0)
    throw new OptionsError(`[device] LLM_CUDA_DEVICE: expected a card's number, got ${process.env["LLM_CUDA_DEVICE"]}`);
  call((a) => a.openDevice(path, card));
}
export const nativePlan = {
  record: (): number => call((a) => a.planRecord()),
  stop: (): void => call((a) => a.planStop()),
  replay: (plan: number): void => call((a) => a.planReplay(plan)),
  size: (plan: number): number => call((a) => a.planSize(plan)),
  free: (plan: number): void => call((a) => a.planFree(plan)),
};
export const nativeProfile = {
  set: (on: boolean): void => call((a) => a.profile(on ? 1 : 0)),
  /** Fills triples of op number, start and duration; returns how many. Waits for the GPU. */
  read: (records: Float64Array): number => call((a) => a.profileRead(records)),
};

/** Waits until every queued command has run. @throws {NumericError} a command met bad data */
export function synchronize(): void {
  call((a) => a.wait());
}

/** Bytes in use on a device, by purpose; default the current device. */
export function memory(device: Device = currentDevice()): MemoryReport {
  return call((a) => a.memory(devices.indexOf(device)));
}

/** Caps the core's memory on a device (default the current one); an allocation beyond it throws OutOfMemoryError. 0 = no limit. */
export function setMemoryLimit(bytes: number, device: Device = currentDevice()): void {
  call((a) => a.memoryLimit(devices.indexOf(device), bytes));
}

/** Gives cached blocks of a device (default the current one) back to the system; `peakBytes` starts anew. */
export function trimMemory(device: Device = currentDevice()): void {
  call((a) => a.memoryTrim(devices.indexOf(device)));
}

/**
 * How commands run: "queued" (default) on the core's own thread, so that the event loop is never blocked; "inline" on the
 * calling thread, for debugging.
 */
export function setExecution(mode: "queued" | "inline"): void {
  call((a) => a.runInline(mode === "inline" ? 1 : 0));
}

/** What the native core is and which kernels it picked on this machine. */
export function nativeDoctor(): DoctorReport {
  return call((a) => ({ ...a.doctor(), path: addonPath }));
}
