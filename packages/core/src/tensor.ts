import { type DType, dtypeBytes, type TypedArray } from "./dtype.js";
import { currentDevice, type Device, requireDevice } from "./device.js";
import { DisposedError, DTypeError, ShapeError } from "./errors.js";
import type { Node } from "./autograd.js";
import { keep, ownTensor } from "./memory.js";
import {
  type MemoryTag,
  nativeAlias,
  nativeEmpty,
  nativeMap,
  nativeRead,
  nativeReadAsync,
  nativeRelease,
  nativeTo,
  nativeView,
  nativeWrite,
} from "./native.js";

/** A cheap way to compute a tensor again, bit for bit. */
export interface Recipe {
  inputs: readonly Tensor[];
  run(inputs: readonly Tensor[]): Tensor;
}

/** What tensors are read as. */
type NumberArray = Float32Array | Int32Array | Int8Array | Uint8Array | BigInt64Array;

/** Frees handles of tensors that no scope owns and that were collected. */
const collected = new FinalizationRegistry<number>((handle) => nativeRelease(handle));

/** f32 values of bf16 bits. */
function fromBf16(bits: Uint16Array): Float32Array {
  const wide = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) wide[i] = bits[i]! << 16;
  return new Float32Array(wide.buffer);
}

function fromF16(bits: Uint16Array): Float32Array {
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const h = bits[i]!;
    const sign = h & 0x8000 ? -1 : 1;
    const exponent = (h >> 10) & 31;
    const mantissa = h & 1023;
    if (exponent === 31) out[i] = mantissa ? NaN : sign * Infinity;
    else out[i] = sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25));
  }
  return out;
}

/**
 * A dense or row-strided array of numbers in the native core. The object is a small handle; the numbers live outside V8's heap.
 * Inside `scope()` (and inside `train`, `generate`, engines) tensors are freed for you; elsewhere `dispose()` frees at once and the
 * garbage collector late.
 */
export class Tensor {
  readonly isTensor = true;
  /** Integer name in the native table; 0 after dispose(). */
  private id: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly device: Device;
  /** Elements between neighbours of each dim; undefined = dense. */
  readonly strides: readonly number[] | undefined;
  /** A leaf that wants `grad` from backward(). */
  requiresGrad = false;
  /** Sum of gradients since the last reset; f32, for leaves only. */
  grad: Tensor | undefined;
  /** The autograd node that made this tensor. */
  node: Node | undefined;
  /** Which of the node's outputs this is. */
  nodeOutput = 0;
  /** How to make these numbers again from tensors that are kept anyway; nodes save that instead of the numbers. */
  recipe: Recipe | undefined;
  /** A view or a second reference: others may see what is written here. */
  sharesMemory = false;

  constructor(
    handle: number,
    dtype: DType,
    shape: readonly number[],
    device: Device,
    strides?: readonly number[],
    owned = true,
  ) {
    this.id = handle;
    this.dtype = dtype;
    this.shape = shape;
    this.device = device;
    this.strides = strides;
    if (owned) ownTensor(this);
  }

  /** @throws {DisposedError} after dispose() */
  get handle(): number {
    if (this.id === 0)
      throw new DisposedError(`[tensor] a disposed tensor of shape [${this.shape.join(", ")}] was used`);
    return this.id;
  }

  get disposed(): boolean {
    return this.id === 0;
  }

  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1);
  }

  get bytes(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  /** Length of a dim; negative counts from the end. */
  dim(index: number): number {
    const length = this.shape[index < 0 ? this.shape.length + index : index];
    if (length === undefined) throw new ShapeError(`[tensor] no dim ${index} in [${this.shape.join(", ")}]`);
    return length;
  }

  /** Lets the garbage collector free the memory; called when no scope owns the tensor. */
  freeWhenCollected(): void {
    if (this.id !== 0) collected.register(this, this.id, this);
  }

  /** Frees this reference to the memory now. Idempotent; views and autograd keep what they still need. */
  dispose(): void {
    if (this.id === 0) return;
    const handle = this.id;
    this.id = 0;
    this.node = undefined;
    this.recipe = undefined;
    collected.unregister(this);
    nativeRelease(handle);
    this.grad?.dispose();
    this.grad = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** A second reference on the same memory that no scope owns and no graph is attached to; dispose() it. */
  alias(): Tensor {
    return sharing(new Tensor(nativeAlias(this.handle), this.dtype, this.shape, this.device, this.strides, false));
  }

  /** The same memory without its history: gradients stop here. */
  detach(): Tensor {
    return sharing(new Tensor(nativeAlias(this.handle), this.dtype, this.shape, this.device, this.strides));
  }

  /** A view with given shape and strides, `offset` elements from this one's start. No gradient: see ops for differentiable ones. */
  asStrided(shape: readonly number[], strides: readonly number[], offset: number): Tensor {
    return sharing(
      new Tensor(
        nativeView(this.handle, shape, strides, offset),
        this.dtype,
        shape,
        this.device,
        denseStrides(shape, strides) ? undefined : strides,
      ),
    );
  }

  /** Rows [start, end) of the first dim, sharing memory. No gradient. */
  rows(start: number, end: number): Tensor {
    const length = this.dim(0);
    if (!(start >= 0 && start <= end && end <= length)) {
      throw new ShapeError(`[tensor.rows] expected 0 <= start <= end <= ${length}, got ${start}, ${end}`);
    }
    const strides = this.strides ?? rowMajor(this.shape);
    return this.asStrided([end - start, ...this.shape.slice(1)], strides, start * strides[0]!);
  }

  /** Columns [start, end) of a [T, N] tensor, sharing memory; rows stay N apart. No gradient. */
  columns(start: number, end: number): Tensor {
    if (this.shape.length !== 2 || !(start >= 0 && start <= end && end <= this.dim(1))) {
      throw new ShapeError(
        `[tensor.columns] expected a 2-d tensor and 0 <= start <= end <= columns, got [${this.shape.join(", ")}], ${start}, ${end}`,
      );
    }
    const strides = this.strides ?? rowMajor(this.shape);
    return this.asStrided([this.dim(0), end - start], strides, start);
  }

  /** A dense copy on `device`, in order with the queued ops; this tensor itself when it is there already. No gradient. @throws {DeviceError} */
  to(device: Device, tag: MemoryTag = "other"): Tensor {
    if (device === this.device) return this;
    requireDevice(device);
    return new Tensor(nativeTo(this.handle, device, tag), this.dtype, this.shape, device);
  }

  /** Overwrites all elements, in order with the queued ops. `data` holds the dtype's own bits (Uint16Array for bf16 and f16). */
  write(data: ArrayBufferView): this {
    nativeWrite(this.handle, data);
    return this;
  }

  /** Waits for the value and copies it out in the dtype's own bits. Blocks the event loop; prefer `data()` in servers. */
  bitsSync(): TypedArray {
    const out = newTypedArray(this.dtype, this.size);
    nativeRead(this.handle, out);
    return out;
  }

  /** Waits for the value; floats come as Float32Array. Blocks the event loop; prefer `data()`. */
  dataSync(): NumberArray {
    return this.numbers(this.bitsSync());
  }

  private numbers(bits: TypedArray): NumberArray {
    if (this.dtype === "bf16") return fromBf16(bits as Uint16Array);
    if (this.dtype === "f16") return fromF16(bits as Uint16Array);
    return bits as NumberArray;
  }

  /**
   * As dataSync, without blocking: the copy takes its turn among the queued ops, what is queued later does not wait for it.
   * @throws {NumericError} bad data met on the way
   */
  async data(): Promise<NumberArray> {
    const bits = newTypedArray(this.dtype, this.size);
    await nativeReadAsync(this.handle, bits);
    return this.numbers(bits);
  }

  /** The only element of a one-element float tensor. */
  async item(): Promise<number> {
    return Number((await this.data())[0]);
  }

  itemSync(): number {
    return Number(this.dataSync()[0]);
  }

  /** Takes this tensor out of the open scopes: it lives until dispose(). */
  keep(): this {
    return keep(this);
  }

  toString(): string {
    return `Tensor(${this.dtype} [${this.shape.join(", ")}]${this.disposed ? ", disposed" : ""})`;
  }
}

function sharing(view: Tensor): Tensor {
  view.sharesMemory = true;
  return view;
}

export function rowMajor(shape: readonly number[]): number[] {
  const strides: number[] = new Array(shape.length);
  let stride = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= shape[i]!;
  }
  return strides;
}

function denseStrides(shape: readonly number[], strides: readonly number[]): boolean {
  const dense = rowMajor(shape);
  return shape.every((length, i) => length <= 1 || strides[i] === dense[i]);
}

function newTypedArray(dtype: DType, size: number): TypedArray {
  switch (dtype) {
    case "f32":
      return new Float32Array(size);
    case "f16":
    case "bf16":
      return new Uint16Array(size);
    case "i32":
      return new Int32Array(size);
    case "i8":
      return new Int8Array(size);
    case "u8":
      return new Uint8Array(size);
    case "i64":
      return new BigInt64Array(size);
  }
}

/** Uninitialised tensor on the current device. */
export function empty(
  shape: readonly number[],
  dtype: DType = "f32",
  tag: MemoryTag = "other",
  device: Device = currentDevice(),
): Tensor {
  return new Tensor(nativeEmpty(dtype, shape, tag, device), dtype, [...shape], device);
}

const dtypeOfArray = (data: TypedArray): DType => {
  if (data instanceof Float32Array) return "f32";
  if (data instanceof Int32Array) return "i32";
  if (data instanceof Int8Array) return "i8";
  if (data instanceof Uint8Array) return "u8";
  if (data instanceof BigInt64Array) return "i64";
  throw new DTypeError("[tensor] a Uint16Array holds bf16 or f16 bits: pass the dtype");
};

/**
 * A tensor with the given numbers, copied.
 * @param data   typed array in the dtype's own bits, or plain numbers (then f32)
 * @param shape  default [length]
 * @param dtype  default by the array's type; must be given for 16-bit bits
 * @param device default the current device
 * @throws {ShapeError} the shape does not hold `data.length` elements
 */
export function tensor(
  data: TypedArray | readonly number[],
  shape?: readonly number[],
  dtype?: DType,
  tag: MemoryTag = "other",
  device: Device = currentDevice(),
): Tensor {
  const array: TypedArray = Array.isArray(data)
    ? dtype === "i32"
      ? Int32Array.from(data)
      : Float32Array.from(data)
    : (data as TypedArray);
  const type = dtype ?? dtypeOfArray(array);
  const dims = shape ?? [array.length];
  const size = dims.reduce((a, b) => a * b, 1);
  if (size !== array.length)
    throw new ShapeError(`[tensor] shape [${dims.join(", ")}] holds ${size} elements, got ${array.length}`);
  if (array.BYTES_PER_ELEMENT !== dtypeBytes(type))
    throw new DTypeError(
      `[tensor] ${type} wants ${dtypeBytes(type)} bytes an element, the array has ${array.BYTES_PER_ELEMENT}`,
    );
  return empty(dims, type, tag, device).write(array);
}

/** As `tensor`, on the device of `like`. */
export function tensorLike(
  like: Tensor,
  data: TypedArray | readonly number[],
  shape?: readonly number[],
  dtype?: DType,
): Tensor {
  return tensor(data, shape, dtype, "other", like.device);
}

/** A tensor on bytes of a file, mapped on the CPU (nothing is read until used; writing to it changes only this process's copy). */
export function mapTensor(
  path: string,
  offset: number,
  shape: readonly number[],
  dtype: DType,
  tag: MemoryTag = "weights",
): Tensor {
  const bytes = shape.reduce((a, b) => a * b, 1) * dtypeBytes(dtype);
  return new Tensor(nativeMap(path, offset, bytes, dtype, shape, tag), dtype, [...shape], "cpu");
}
