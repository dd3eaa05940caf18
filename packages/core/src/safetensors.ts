/**
 * The byte layer of safetensors files: headers, shards, raw reads. No tensors and no native code here; who wants to map a
 * file reads `{file, offset, bytes}` of an entry.
 *
 * Layout of a file: u64 little-endian N, N bytes of JSON (padded with spaces), then the data. The JSON maps each tensor's
 * name to `{dtype, shape, data_offsets: [begin, end]}`, offsets counted from the end of the header.
 * @see https://github.com/huggingface/safetensors (README, "Format")
 */
import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { DType } from "./dtype.js";
import { DisposedError, FormatError, IoError } from "./errors.js";

/** Longest header that is accepted, as in the reference implementation. */
export const maxHeaderBytes = 100_000_000;

/** Bits of one element, in the order in which the reference writer sorts tensors of one file (last first). */
const dtypeBits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E5M2FNUZ: 8,
  F8_E4M3FNUZ: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

/** Element types that the format knows. Only some of them have a {@link DType}: see {@link safetensorsDType}. */
export type SafetensorsDType = keyof typeof dtypeBits;

/** Every element type of the format, smallest alignment first. */
export const safetensorsDTypes = Object.keys(dtypeBits) as readonly SafetensorsDType[];

const toDType: Partial<Record<SafetensorsDType, DType>> = {
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
  I32: "i32",
  I64: "i64",
  I8: "i8",
  U8: "u8",
};

const fromDType: Record<DType, SafetensorsDType> = {
  f32: "F32",
  f16: "F16",
  bf16: "BF16",
  i32: "I32",
  i64: "I64",
  i8: "I8",
  u8: "U8",
};

/** One tensor of a file, without its data. */
export interface SafetensorsTensor {
  readonly name: string;
  /** As the file spells it. */
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** Path of the file that holds the data. */
  readonly file: string;
  /** Where the data begins, in bytes from the start of the file. */
  readonly offset: number;
  /** Length of the data in bytes = product of the shape × element size. */
  readonly bytes: number;
}

/** What the header of one file says. */
export interface SafetensorsHeader {
  /** In the order of their data. */
  readonly tensors: readonly SafetensorsTensor[];
  /** The `__metadata__` of the file; empty when it has none. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Where the data begins, in bytes from the start of the file. */
  readonly dataOffset: number;
}

/** An open file, or an open folder of shards, read as one set of tensors. */
export interface SafetensorsHandle {
  /** Files that hold the tensors, in order. */
  readonly files: readonly string[];
  /** By name, in the order of the files and of the data in them. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  /** The `__metadata__` of all files; a later file wins. */
  readonly metadata: Readonly<Record<string, string>>;
  /**
   * Copies a tensor's bytes (little-endian, row-major) into a fresh buffer whose `byteOffset` is 0, so that a typed array
   * of any element size can be laid over it.
   * @throws {FormatError} no tensor of that name
   * @throws {IoError} the file is shorter than when it was opened
   * @throws {DisposedError} after `close()`
   */
  read(name: string): Uint8Array<ArrayBuffer>;
  /** Closes the files. May be called again. */
  close(): void;
}

/**
 * The {@link DType} of an entry.
 * @throws {FormatError} when the format's type has none (F64, BOOL, F8_E4M3 …)
 */
export function safetensorsDType(tensor: Pick<SafetensorsTensor, "name" | "dtype" | "file">): DType {
  const dtype = toDType[tensor.dtype];
  if (dtype !== undefined) return dtype;
  throw new FormatError(
    `[safetensors] tensor ${quote(tensor.name)} of ${tensor.file} has dtype ${tensor.dtype}, expected one of ${Object.keys(toDType).join(", ")}`,
    { file: tensor.file, key: tensor.name, dtype: tensor.dtype },
  );
}

/** The format's spelling of an element type: "bf16" → "BF16"; a name of the format stays; anything else is undefined. */
export function toSafetensorsDType(dtype: string): SafetensorsDType | undefined {
  if (Object.hasOwn(fromDType, dtype)) return fromDType[dtype as DType];
  return Object.hasOwn(dtypeBits, dtype) ? (dtype as SafetensorsDType) : undefined;
}

/** Bytes of a tensor = ⌈product of shape × bits / 8⌉ when that is whole and a safe integer, else undefined. */
export function safetensorsByteLength(dtype: SafetensorsDType, shape: readonly number[]): number | undefined {
  let elements = 1;
  for (const size of shape) {
    elements *= size;
    if (!Number.isSafeInteger(elements)) return shape.includes(0) ? 0 : undefined;
  }
  const bits = elements * dtypeBits[dtype];
  return Number.isSafeInteger(bits) && bits % 8 === 0 ? bits / 8 : undefined;
}

function quote(name: string): string {
  return JSON.stringify(name.length > 200 ? `${name.slice(0, 200)}…` : name);
}

/** Reads exactly `bytes` bytes at `position`. */
function readExactly(descriptor: number, file: string, position: number, bytes: number): Uint8Array<ArrayBuffer> {
  const target = new Uint8Array(new ArrayBuffer(bytes));
  let done = 0;
  while (done < bytes) {
    const count = readSync(descriptor, target, done, Math.min(bytes - done, 1 << 30), position + done);
    if (count === 0) {
      throw new IoError(
        `[safetensors] ${file} ends at byte ${position + done}, expected ${bytes} bytes from ${position}`,
        {
          file,
          offset: position + done,
        },
      );
    }
    done += count;
  }
  return target;
}

function open(file: string): number {
  try {
    return openSync(file, "r");
  } catch (cause) {
    throw new IoError(`[safetensors] cannot open ${file}: ${(cause as Error).message}`, { file }, cause);
  }
}

/** Keys of the outermost object of JSON text that has already been parsed once. */
function outerKeys(json: string): string[] {
  const keys: string[] = [];
  let depth = 0;
  for (let at = 0; at < json.length; at++) {
    const char = json[at];
    if (char === "{" || char === "[") depth++;
    else if (char === "}" || char === "]") depth--;
    else if (char === '"') {
      const begin = at++;
      while (json[at] !== '"') at += json[at] === "\\" ? 2 : 1;
      if (depth === 1) keys.push(JSON.parse(json.slice(begin, at + 1)) as string);
    }
  }
  return keys;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/**
 * Reads and checks the header of one file. Checked: length of the header (≤ 100 MB and inside the file), UTF-8, JSON, no
 * key twice, known dtypes, whole sizes, product of shape × element size = length of the data, and that the tensors cover
 * the data exactly: no hole, no overlap, nothing left at the end.
 * @throws {FormatError} with `data.file` and `data.offset` or `data.key`
 * @throws {IoError} the file cannot be opened
 */
export function readSafetensorsHeader(path: string): SafetensorsHeader {
  const descriptor = open(path);
  try {
    return readHeader(descriptor, path);
  } finally {
    closeSync(descriptor);
  }
}

function readHeader(descriptor: number, file: string): SafetensorsHeader {
  const fail = (message: string, data: Record<string, unknown>, cause?: unknown): FormatError =>
    new FormatError(`[safetensors] ${file}: ${message}`, { file, ...data }, cause);

  const fileBytes = fstatSync(descriptor).size;
  if (fileBytes < 8) throw fail(`expected 8 bytes of header length, got a file of ${fileBytes} bytes`, { offset: 0 });
  const length = new DataView(readExactly(descriptor, file, 0, 8).buffer).getBigUint64(0, true);
  if (length > BigInt(maxHeaderBytes)) {
    throw fail(`expected a header of at most ${maxHeaderBytes} bytes, got ${length} (not a safetensors file?)`, {
      offset: 0,
    });
  }
  const headerBytes = Number(length);
  const dataOffset = 8 + headerBytes;
  if (dataOffset > fileBytes) {
    throw fail(`expected a header of ${headerBytes} bytes, but the file ends at byte ${fileBytes} (cut off?)`, {
      offset: 0,
    });
  }

  let json: string;
  let header: unknown;
  try {
    json = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
      readExactly(descriptor, file, 8, headerBytes),
    );
    if (!json.startsWith("{")) throw new SyntaxError(`the header must start with "{"`);
    header = JSON.parse(json);
  } catch (cause) {
    throw fail(`expected the header to be a JSON object: ${(cause as Error).message}`, { offset: 8 }, cause);
  }
  if (!isObject(header)) throw fail("expected the header to be a JSON object", { offset: 8 });
  const seen = new Set<string>();
  for (const key of outerKeys(json)) {
    if (seen.has(key)) throw fail(`expected each name once, got ${quote(key)} twice`, { key });
    seen.add(key);
  }

  let metadata: Record<string, string> = {};
  const tensors: SafetensorsTensor[] = [];
  for (const [key, value] of Object.entries(header)) {
    if (key === "__metadata__") {
      if (!isObject(value) || Object.values(value).some((text) => typeof text !== "string")) {
        throw fail("expected __metadata__ to map strings to strings", { key });
      }
      metadata = value as Record<string, string>;
      continue;
    }
    tensors.push(parseEntry(key, value));
  }

  tensors.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let end = dataOffset;
  for (const tensor of tensors) {
    if (tensor.offset !== end) {
      const what = tensor.offset > end ? `a hole of ${tensor.offset - end} bytes before` : "an overlap with";
      throw fail(
        `expected the data of ${quote(tensor.name)} to begin at byte ${end - dataOffset} of the data, got ${tensor.offset - dataOffset}: ${what} it`,
        {
          key: tensor.name,
          offset: tensor.offset,
        },
      );
    }
    end += tensor.bytes;
  }
  if (end !== fileBytes) {
    const why = end > fileBytes ? "the file is cut off" : "bytes that belong to no tensor";
    throw fail(`expected ${end} bytes in all, got ${fileBytes}: ${why}`, { offset: Math.min(end, fileBytes) });
  }
  return { tensors, metadata, dataOffset };

  function parseEntry(key: string, value: unknown): SafetensorsTensor {
    if (!isObject(value)) throw fail(`expected ${quote(key)} to be {dtype, shape, data_offsets}`, { key });
    const { dtype, shape, data_offsets: offsets } = value;
    if (typeof dtype !== "string" || !Object.hasOwn(dtypeBits, dtype)) {
      throw fail(
        `expected the dtype of ${quote(key)} to be one of ${safetensorsDTypes.join(", ")}, got ${JSON.stringify(dtype)}`,
        { key },
      );
    }
    if (!Array.isArray(shape) || !shape.every(isSize)) {
      throw fail(
        `expected the shape of ${quote(key)} to be a list of whole numbers ≥ 0, got ${JSON.stringify(shape)}`,
        { key },
      );
    }
    if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[0] > offsets[1]) {
      throw fail(`expected data_offsets of ${quote(key)} to be [begin, end], got ${JSON.stringify(offsets)}`, { key });
    }
    const bytes = (offsets[1] as number) - (offsets[0] as number);
    const expected = safetensorsByteLength(dtype as SafetensorsDType, shape);
    if (bytes !== expected) {
      throw fail(
        `expected ${expected ?? "a whole number of"} bytes for ${quote(key)} of ${dtype} [${shape}], got ${bytes}`,
        { key },
      );
    }
    return {
      name: key,
      dtype: dtype as SafetensorsDType,
      shape,
      file,
      offset: dataOffset + (offsets[0] as number),
      bytes,
    };
  }
}

/** The files of a folder or index and, with an index, which file each tensor is in. */
function findFiles(
  path: string,
  baseName: string,
): { files: string[]; index?: string; weightMap?: Record<string, string> } {
  let isFolder: boolean;
  try {
    isFolder = statSync(path).isDirectory();
  } catch (cause) {
    throw new IoError(`[openSafetensors] ${path} does not exist`, { file: path }, cause);
  }
  let index = path;
  if (isFolder) {
    const single = join(path, `${baseName}.safetensors`);
    if (existsSync(single)) return { files: [single] };
    index = `${single}.index.json`;
    if (!existsSync(index)) {
      throw new IoError(
        `[openSafetensors] expected ${baseName}.safetensors or ${basename(index)} in ${path}, found neither`,
        { file: path },
      );
    }
  } else if (!path.endsWith(".safetensors.index.json")) {
    return { files: [path] };
  }

  let content: unknown;
  try {
    content = JSON.parse(readFileSync(index, "utf8"));
  } catch (cause) {
    throw new FormatError(
      `[openSafetensors] ${index}: expected JSON: ${(cause as Error).message}`,
      { file: index },
      cause,
    );
  }
  const weightMap = isObject(content) ? content["weight_map"] : undefined;
  if (!isObject(weightMap)) {
    throw new FormatError(`[openSafetensors] ${index}: expected "weight_map" to map tensors to files`, {
      file: index,
      key: "weight_map",
    });
  }
  const files = new Set<string>();
  for (const [key, file] of Object.entries(weightMap)) {
    if (typeof file !== "string" || file === "" || file !== basename(file) || file.includes("\\") || file === "..") {
      throw new FormatError(
        `[openSafetensors] ${index}: expected the file of ${quote(key)} to be a name in the same folder, got ${JSON.stringify(file)}`,
        {
          file: index,
          key,
        },
      );
    }
    files.add(file);
  }
  const folder = dirname(index);
  const missing = [...files].filter((file) => !existsSync(join(folder, file)));
  if (missing.length > 0) {
    throw new FormatError(`[openSafetensors] ${index} names ${files.size} files, missing: ${missing.join(", ")}`, {
      file: index,
      missing,
    });
  }
  return {
    files: [...files].sort().map((file) => join(folder, file)),
    index,
    weightMap: weightMap as Record<string, string>,
  };
}

/**
 * Opens a file, a folder that holds `model.safetensors`, a folder with `model.safetensors.index.json` and its shards, or
 * such an index by its own path. All headers are read and checked; data is read only by `read()`.
 * With an index, its `weight_map` and the shards' headers must name the same tensors in the same files.
 * @param baseName  first part of the names looked for in a folder, e.g. "adapter_model". @default "model"
 * @throws {FormatError} a broken header or index, a missing shard (named), a tensor that is not where the index says
 * @throws {IoError} nothing to open there
 */
export function openSafetensors(path: string, { baseName = "model" }: { baseName?: string } = {}): SafetensorsHandle {
  const { files, index, weightMap } = findFiles(path, baseName);
  const descriptors = new Map<string, number>();
  const close = (): void => {
    for (const descriptor of descriptors.values()) closeSync(descriptor);
    descriptors.clear();
  };
  const tensors = new Map<string, SafetensorsTensor>();
  const metadata: Record<string, string> = {};
  try {
    for (const file of files) {
      const descriptor = open(file);
      descriptors.set(file, descriptor);
      const header = readHeader(descriptor, file);
      Object.assign(metadata, header.metadata);
      for (const tensor of header.tensors) {
        const expected =
          weightMap === undefined
            ? basename(file)
            : Object.hasOwn(weightMap, tensor.name)
              ? weightMap[tensor.name]
              : undefined;
        if (expected !== basename(file)) {
          const where = expected === undefined ? "does not list it" : `puts it in ${expected}`;
          throw new FormatError(`[openSafetensors] ${file} holds ${quote(tensor.name)}, but ${index} ${where}`, {
            file,
            key: tensor.name,
          });
        }
        tensors.set(tensor.name, tensor);
      }
    }
    for (const [name, file] of Object.entries(weightMap ?? {})) {
      if (!tensors.has(name)) {
        throw new FormatError(
          `[openSafetensors] ${index}: expected ${quote(name)} in ${file}, which does not hold it`,
          { file: index, key: name },
        );
      }
    }
  } catch (error) {
    close();
    throw error;
  }
  return {
    files,
    tensors,
    metadata,
    close,
    read(name) {
      const tensor = tensors.get(name);
      if (tensor === undefined)
        throw new FormatError(`[safetensors] ${path} holds no tensor ${quote(name)}`, { file: path, key: name });
      const descriptor = descriptors.get(tensor.file);
      if (descriptor === undefined)
        throw new DisposedError(`[safetensors] ${path} was closed before ${quote(name)} was read`, { file: path });
      return readExactly(descriptor, tensor.file, tensor.offset, tensor.bytes);
    },
  };
}
