/** Where tensors live and ops run: the CPU, or one NVIDIA GPU through the CUDA plugin. */
import { DeviceError } from "./errors.js";
import { nativeOpenCuda } from "./native.js";

/** "cuda" is the card that LLM_CUDA_DEVICE names (default 0, counted as CUDA_VISIBLE_DEVICES leaves them). */
export type Device = "cpu" | "cuda";

/** In the native core's order. */
export const devices: readonly Device[] = ["cpu", "cuda"];

let cuda: { open: true } | { open: false; reason: string } | undefined;
let standard: Device | undefined;
const inner: Device[] = [];

function tryCuda(): { open: true } | { open: false; reason: string } {
  if (cuda) return cuda;
  try {
    nativeOpenCuda();
    cuda = { open: true };
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error;
    cuda = { open: false, reason: error.message };
  }
  return cuda;
}

/** Null when a GPU can be used, else why not. Opens the CUDA plugin on first use. */
export function cudaProblem(): string | null {
  const state = tryCuda();
  return state.open ? null : state.reason;
}

/**
 * Checks that a device can be used; opens it.
 * @throws {DeviceError} "cuda" without plugin, driver or GPU; the message says which
 */
export function requireDevice(device: Device): Device {
  if (device === "cuda") {
    const problem = cudaProblem();
    if (problem !== null) throw new DeviceError(problem, { device });
  } else if (device !== "cpu") {
    throw new DeviceError(`[device] expected "cpu" or "cuda", got ${JSON.stringify(device)}`, { device });
  }
  return device;
}

/**
 * The device of new tensors and models where none is named: what `setDefaultDevice` or LLM_DEVICE says, else "cuda" when a GPU can be used,
 * else "cpu".
 * @throws {DeviceError} LLM_DEVICE names a device that cannot be used
 */
export function defaultDevice(): Device {
  if (standard) return standard;
  const named = process.env["LLM_DEVICE"];
  standard = named ? requireDevice(named as Device) : tryCuda().open ? "cuda" : "cpu";
  return standard;
}

/** Sets what `defaultDevice` returns. @throws {DeviceError} it cannot be used */
export function setDefaultDevice(device: Device): void {
  standard = requireDevice(device);
}

/** The device of tensors that are made now: that of the innermost `onDevice`, else the default. */
export function currentDevice(): Device {
  return inner[inner.length - 1] ?? defaultDevice();
}

/** Runs `fn` with `device` as the place of new tensors. Synchronous only, as `scope`. @throws {DeviceError} it cannot be used */
export function onDevice<T>(device: Device, fn: () => T): T {
  inner.push(requireDevice(device));
  let result: T;
  try {
    result = fn();
  } finally {
    inner.pop();
  }
  if (typeof (result as { then?: unknown } | null | undefined)?.then === "function") {
    throw new TypeError(
      "[onDevice] the function returned a Promise; onDevice() is synchronous, wrap each synchronous part",
    );
  }
  return result;
}
