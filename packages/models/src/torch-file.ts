import { statSync } from "node:fs";
import { FormatError, IoError, UnsupportedError } from "@llm/core";
import { PickleGlobal, unpickle } from "./pickle.js";
import { openZip, readBytes } from "./zip.js";

/** Element types of tensors in PyTorch files, spelt as in safetensors. */
export type TorchDType = "F64" | "F32" | "F16" | "BF16" | "I64" | "I32" | "I16" | "I8" | "U8" | "BOOL" | "C64";

const elementBytes: Record<TorchDType, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
  C64: 8,
};

const storageTypes: Record<string, TorchDType> = {
  DoubleStorage: "F64",
  FloatStorage: "F32",
  HalfStorage: "F16",
  BFloat16Storage: "BF16",
  LongStorage: "I64",
  IntStorage: "I32",
  ShortStorage: "I16",
  CharStorage: "I8",
  ByteStorage: "U8",
  BoolStorage: "BOOL",
  ComplexFloatStorage: "C64",
  UntypedStorage: "U8",
};

const dtypeNames = new Map<string, TorchDType | undefined>([
  ["float64", "F64"],
  ["double", "F64"],
  ["float32", "F32"],
  ["float", "F32"],
  ["float16", "F16"],
  ["half", "F16"],
  ["bfloat16", "BF16"],
  ["int64", "I64"],
  ["long", "I64"],
  ["int32", "I32"],
  ["int", "I32"],
  ["int16", "I16"],
  ["short", "I16"],
  ["int8", "I8"],
  ["uint8", "U8"],
  ["bool", "BOOL"],
  ["complex64", "C64"],
]);

/** A tensor of a PyTorch file. Its data stays in the file until `read()`. */
export interface TorchTensor {
  readonly dtype: TorchDType;
  readonly shape: readonly number[];
  /** In elements, as in the file. `read()` returns the elements row-major whatever these are. */
  readonly stride: readonly number[];
  /** Bytes that `read()` returns. */
  readonly byteLength: number;
  /** The elements, little-endian, row-major, in a fresh buffer. @throws {FormatError} damaged @throws {IoError} */
  read(): Uint8Array<ArrayBuffer>;
}

/** What a file may hold: dict → Map, list/tuple/torch.Size → array, None → null, a dtype → "torch.float32". */
export type TorchValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | TorchTensor
  | TorchValue[]
  | Map<TorchValue, TorchValue>
  | Set<TorchValue>;

/** A piece of memory that tensors are views of. */
class Storage {
  readonly dtype: TorchDType;
  /** In elements of `dtype`. */
  readonly size: number;
  /** First element, for a view of another storage (old files). */
  readonly begin: number;
  readonly load: (begin: number, bytes: number) => Uint8Array<ArrayBuffer>;

  constructor(dtype: TorchDType, size: number, begin: number, load: Storage["load"]) {
    this.dtype = dtype;
    this.size = size;
    this.begin = begin;
    this.load = load;
  }
}

class StorageType extends PickleGlobal {
  readonly dtype: TorchDType;

  constructor(name: string, dtype: TorchDType) {
    super(name);
    this.dtype = dtype;
  }
}

class StoredTensor implements TorchTensor {
  readonly dtype: TorchDType;
  readonly shape: readonly number[];
  readonly stride: readonly number[];
  readonly byteLength: number;
  private readonly storage: Storage;
  private readonly offset: number;

  constructor(dtype: TorchDType, storage: Storage, offset: number, shape: number[], stride: number[]) {
    this.dtype = dtype;
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.stride = stride;
    this.byteLength = shape.reduce((a, b) => a * b, 1) * elementBytes[dtype];
  }

  read(): Uint8Array<ArrayBuffer> {
    const { shape, stride, byteLength } = this;
    const width = elementBytes[this.dtype];
    if (byteLength === 0) return new Uint8Array(new ArrayBuffer(0));
    const span = 1 + shape.reduce((sum, size, axis) => sum + (size - 1) * stride[axis]!, 0);
    const source = this.storage.load(
      this.storage.begin * elementBytes[this.storage.dtype] + this.offset * width,
      span * width,
    );
    if (isContiguous(shape, stride)) return source;
    const target = new Uint8Array(new ArrayBuffer(byteLength));
    const index = shape.map(() => 0);
    let from = 0;
    for (let to = 0; to < byteLength; to += width) {
      for (let byte = 0; byte < width; byte++) target[to + byte] = source[from * width + byte]!;
      for (let axis = shape.length - 1; axis >= 0; axis--) {
        from += stride[axis]!;
        if (++index[axis]! < shape[axis]!) break;
        from -= shape[axis]! * stride[axis]!;
        index[axis] = 0;
      }
    }
    return target;
  }
}

function isContiguous(shape: readonly number[], stride: readonly number[]): boolean {
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1 && stride[axis] !== expected) return false;
    expected *= shape[axis]!;
  }
  return true;
}

/** True for a tensor in the tree that {@link readTorchFile} returns. */
export function isTorchTensor(value: unknown): value is TorchTensor {
  return value instanceof StoredTensor;
}

function sizes(value: unknown): number[] | undefined {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && (size as number) >= 0)
    ? [...(value as number[])]
    : undefined;
}

function buildTensor(
  file: string,
  [storage, offset, shapeValue, strideValue, , , dtypeValue]: unknown[],
): StoredTensor {
  const fail = (message: string): FormatError => new FormatError(`[readTorchFile] ${file}: ${message}`, { file });
  const shape = sizes(shapeValue);
  const stride = sizes(strideValue);
  if (!(storage instanceof Storage)) throw fail("expected a tensor to have a storage");
  if (
    !Number.isSafeInteger(offset) ||
    (offset as number) < 0 ||
    shape === undefined ||
    stride === undefined ||
    shape.length !== stride.length
  ) {
    throw fail("expected a tensor's offset, shape and stride to be whole numbers ≥ 0");
  }
  const dtype = typeof dtypeValue === "string" ? dtypeNames.get(dtypeValue.replace(/^torch\./, "")) : storage.dtype;
  if (dtype === undefined)
    throw new UnsupportedError(`[readTorchFile] ${file}: tensors of ${String(dtypeValue)} cannot be read`, { file });
  const capacity = Math.floor((storage.size * elementBytes[storage.dtype]) / elementBytes[dtype]);
  const elements = shape.reduce((a, b) => a * b, 1);
  const last = (offset as number) + shape.reduce((sum, size, axis) => sum + (size - 1) * stride[axis]!, 0);
  if (elements > 0 && last >= capacity) {
    throw fail(
      `a tensor of shape [${shape}], stride [${stride}] and offset ${String(offset)} does not fit into its storage of ${capacity} elements`,
    );
  }
  // An expanded view repeats elements; a file must not make us allocate without bound.
  if (elements > Math.max(capacity, 1) * 4096)
    throw fail(`a tensor of shape [${shape}] repeats a storage of ${capacity} elements too often`);
  return new StoredTensor(dtype, storage, offset as number, shape, stride);
}

/** Everything that a file may name. Nothing else is ever called. */
function allowedGlobals(file: string): (module: string, name: string) => unknown {
  const tensor = (name: string): PickleGlobal => new PickleGlobal(name, (args) => buildTensor(file, args.slice(0, 6)));
  const functions = new Map<string, PickleGlobal>([
    ["torch._utils._rebuild_tensor_v2", tensor("torch._utils._rebuild_tensor_v2")],
    ["torch._utils._rebuild_tensor", tensor("torch._utils._rebuild_tensor")],
    [
      "torch._utils._rebuild_tensor_v3",
      new PickleGlobal("torch._utils._rebuild_tensor_v3", (args) => buildTensor(file, args)),
    ],
    [
      "torch._utils._rebuild_parameter",
      new PickleGlobal("torch._utils._rebuild_parameter", ([data]) => {
        if (isTorchTensor(data)) return data;
        throw new FormatError(`[readTorchFile] ${file}: expected a parameter to be a tensor`, { file });
      }),
    ],
    [
      "collections.OrderedDict",
      new PickleGlobal("collections.OrderedDict", ([pairs = []]) => {
        if (Array.isArray(pairs) && pairs.every((pair) => Array.isArray(pair) && pair.length === 2))
          return new Map(pairs as [unknown, unknown][]);
        throw new FormatError(`[readTorchFile] ${file}: expected an OrderedDict to be made of pairs`, { file });
      }),
    ],
    [
      "torch.Size",
      new PickleGlobal("torch.Size", ([value]) => {
        const size = sizes(value);
        if (size !== undefined) return size;
        throw new FormatError(`[readTorchFile] ${file}: expected a torch.Size of whole numbers`, { file });
      }),
    ],
  ]);
  return (module, name) => {
    const known = functions.get(`${module}.${name}`);
    if (known !== undefined) return known;
    if (["torch", "torch.storage", "torch.cuda"].includes(module) && Object.hasOwn(storageTypes, name))
      return new StorageType(`${module}.${name}`, storageTypes[name]!);
    if (module === "torch" && dtypeNames.has(name)) return `torch.${name}`;
    return undefined;
  };
}

/** Arrays, maps and numbers only: a class left over as data is refused. */
function checkTree(file: string, root: unknown): TorchValue {
  const seen = new Set<unknown>();
  const pending: unknown[] = [root];
  while (pending.length > 0) {
    const value = pending.pop();
    if (value instanceof PickleGlobal || value instanceof Storage) {
      throw new FormatError(
        `[readTorchFile] ${file}: expected data, got ${value instanceof Storage ? "a bare storage" : value.name}`,
        { file },
      );
    }
    if (typeof value !== "object" || value === null || seen.has(value)) continue;
    seen.add(value);
    if (Array.isArray(value) || value instanceof Set) for (const item of value) pending.push(item);
    else if (value instanceof Map) for (const [key, item] of value) pending.push(key, item);
  }
  return root as TorchValue;
}

/** The parts of `("storage", type, key, location, size[, view])`. */
function parseStorageId(file: string, id: unknown): { dtype: TorchDType; key: string; size: number; begin: number } {
  const [kind, type, key, , size, view] = Array.isArray(id) ? (id as unknown[]) : [];
  if (
    kind !== "storage" ||
    !(type instanceof StorageType) ||
    typeof key !== "string" ||
    !Number.isSafeInteger(size) ||
    (size as number) < 0
  ) {
    throw new FormatError(`[readTorchFile] ${file}: expected a persistent id ("storage", type, key, location, size)`, {
      file,
    });
  }
  if (view === undefined || view === null) return { dtype: type.dtype, key, size: size as number, begin: 0 };
  const [, begin, length] = Array.isArray(view) ? (view as unknown[]) : [];
  const numbers = sizes([begin, length]);
  if (numbers === undefined || numbers[0]! + numbers[1]! > (size as number))
    throw new FormatError(`[readTorchFile] ${file}: expected a view inside its storage`, { file });
  return { dtype: type.dtype, key, size: numbers[1]!, begin: numbers[0]! };
}

/**
 * Reads a file that `torch.save` wrote (`.pt`, `.pth`, `.bin`; the zip form and the older one), without Python and without
 * running anything: only tensors, their storages, OrderedDict, Parameter, Size and dtypes may be named. Tensor data is read
 * when asked for.
 * @throws {FormatError} anything else is named (`data.global`), or the file is damaged
 * @throws {UnsupportedError} big-endian files, the tar form of 2016
 * @throws {IoError} no such file
 * @see torch/serialization.py
 */
export function readTorchFile(file: string): TorchValue {
  const fileBytes = statSync(file, { throwIfNoEntry: false })?.size;
  if (fileBytes === undefined) throw new IoError(`[readTorchFile] ${file} does not exist`, { file });
  const start = readBytes(file, 0, Math.min(fileBytes, 300));
  if (start[0] === 0x50 && start[1] === 0x4b) return readZipForm(file, fileBytes);
  if (start[0] === 0x80) return readOldForm(file, fileBytes);
  if (Buffer.from(start.subarray(257, 262)).toString("latin1") === "ustar") {
    throw new UnsupportedError(
      `[readTorchFile] ${file} has the tar form of PyTorch before 0.1.10; save it again with a newer PyTorch`,
      { file },
    );
  }
  throw new FormatError(`[readTorchFile] ${file}: expected a file written by torch.save (zip or pickle)`, {
    file,
    offset: 0,
  });
}

function readZipForm(file: string, fileBytes: number): TorchValue {
  const zip = openZip(file, fileBytes);
  const pickle = [...zip.entries.keys()].find((name) => /^[^/]+\/data\.pkl$/.test(name));
  if (pickle === undefined)
    throw new FormatError(`[readTorchFile] ${file}: expected an entry <name>/data.pkl`, { file });
  const folder = pickle.slice(0, -"data.pkl".length);
  if (zip.entries.has(`${folder}constants.pkl`)) {
    throw new UnsupportedError(
      `[readTorchFile] ${file} is a TorchScript program, expected a checkpoint; save its state_dict()`,
      { file },
    );
  }
  if (
    zip.entries.has(`${folder}byteorder`) &&
    Buffer.from(zip.read(`${folder}byteorder`)).toString("latin1") !== "little"
  ) {
    throw new UnsupportedError(`[readTorchFile] ${file} was written on a big-endian machine`, { file });
  }
  const { value } = unpickle(zip.read(pickle), {
    file,
    findGlobal: allowedGlobals(file),
    findPersistent(id) {
      const { dtype, key, size, begin } = parseStorageId(file, id);
      const name = `${folder}data/${key}`;
      const entry = zip.entries.get(name);
      if (entry === undefined || entry.size < (begin + size) * elementBytes[dtype]) {
        throw new FormatError(
          `[readTorchFile] ${file}: expected ${(begin + size) * elementBytes[dtype]} bytes in ${name}, got ${entry?.size ?? "no such entry"}`,
          { file, key: name },
        );
      }
      return new Storage(dtype, size, begin, (from, bytes) => zip.read(name, from, bytes));
    },
  });
  return checkTree(file, value);
}

const oldMagic = 0x1950a86a20f9469cfc6cn;
const oldProtocol = 1001;

/** Five pickles (magic, protocol, machine, the object, the storages' keys), then each storage: i64 size, elements. */
function readOldForm(file: string, fileBytes: number): TorchValue {
  const fail = (message: string): FormatError => new FormatError(`[readTorchFile] ${file}: ${message}`, { file });
  // The pickles come first and are small beside the data; where they end is known only by reading them.
  const bytes = readBytes(file, 0, fileBytes);
  const places = new Map<string, { dtype: TorchDType; begin: number; size: number }>();
  const wanted = new Map<string, { dtype: TorchDType; size: number }>();
  let end = 0;
  const next = (): unknown => {
    const result = unpickle(bytes, {
      file,
      begin: end,
      findGlobal: allowedGlobals(file),
      findPersistent(id) {
        const { dtype, key, size, begin } = parseStorageId(file, id);
        wanted.set(key, { dtype, size: Math.max(begin + size, wanted.get(key)?.size ?? 0) });
        return new Storage(dtype, size, begin, (from, count) => {
          const place = places.get(key)!;
          return bytes.slice(place.begin + from, place.begin + from + count);
        });
      },
    });
    end = result.end;
    return result.value;
  };

  const magic = next();
  if (magic !== oldMagic)
    throw fail(
      `expected the magic number of torch.save, got ${typeof magic === "bigint" || typeof magic === "number" ? magic : typeof magic} (a plain pickle?)`,
    );
  const protocol = next();
  if (protocol !== oldProtocol) throw fail(`expected protocol ${oldProtocol}, got ${String(protocol)}`);
  const machine = next();
  if (!(machine instanceof Map) || machine.get("little_endian") !== true) {
    throw new UnsupportedError(`[readTorchFile] ${file} was written on a big-endian machine`, { file });
  }
  const value = next();
  const keys = next();
  if (!Array.isArray(keys)) throw fail("expected the list of storages");
  for (const key of keys as unknown[]) {
    const storage = wanted.get(String(key));
    if (storage === undefined) throw fail(`the list of storages names ${String(key)}, which nothing uses`);
    if (end + 8 > fileBytes) throw fail(`storage ${String(key)} is cut off`);
    const size = Number(new DataView(bytes.buffer, end, 8).getBigInt64(0, true));
    const length = size * elementBytes[storage.dtype];
    if (size < storage.size || end + 8 + length > fileBytes)
      throw fail(`storage ${String(key)} has ${size} elements, expected ${storage.size} (cut off?)`);
    places.set(String(key), { dtype: storage.dtype, begin: end + 8, size });
    end += 8 + length;
  }
  for (const key of wanted.keys())
    if (!places.has(key)) throw fail(`storage ${key} is missing from the list of storages`);
  return checkTree(file, value);
}
