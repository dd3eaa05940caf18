import { randomBytes } from "node:crypto";
import { mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { parseByteSize } from "./byte-size.js";
import type { DType } from "./dtype.js";
import { DTypeError, FormatError, IoError, LlmError, OptionsError, ShapeError } from "./errors.js";
import { parseOptions } from "./options.js";
import type { SafetensorsDType } from "./safetensors.js";
import { maxHeaderBytes, safetensorsByteLength, safetensorsDTypes, toSafetensorsDType } from "./safetensors.js";

/** A tensor to write. Its data is asked for once, when its turn comes, and let go before the next one's. */
export interface SafetensorsSource {
  name: string;
  /** "bf16", or the format's own spelling ("BF16", "F64"). */
  dtype: DType | SafetensorsDType;
  shape: readonly number[];
  /** Length of what `bytes()` will give = product of shape × element size. */
  byteLength: number;
  /** The data, little-endian and row-major. */
  bytes: () => Uint8Array | Promise<Uint8Array>;
}

const byteSize = v.pipe(
  v.union([v.number(), v.string()]),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    try {
      return parseByteSize(dataset.value);
    } catch (error) {
      addIssue({ message: (error as Error).message });
      return NEVER;
    }
  }),
  v.minValue(1, "expected at least 1 byte"),
);

/** Options of {@link writeSafetensors}. */
export const WriteSafetensorsOptions = v.strictObject({
  /**
   * Most bytes of tensor data in one file; a number or a text such as "2GB" (2·10⁹). A larger tensor gets a file of its own.
   * @default 5e9
   */
  maxShardBytes: v.optional(byteSize, 5e9),
  /**
   * The `__metadata__` of every file. Other libraries want to see `format: "pt"`.
   * @default {format: "pt"}
   */
  metadata: v.optional(v.record(v.string(), v.string()), { format: "pt" }),
  /**
   * First part of the file names: "model" → `model.safetensors`, `model-00001-of-00002.safetensors`.
   * @default "model"
   */
  baseName: v.optional(v.pipe(v.string(), v.regex(/^[\w][\w.+-]*$/, "expected letters, digits, _ . + -")), "model"),
  /** Stops between two tensors; what was there before stays as it was. */
  signal: v.optional(v.instance(AbortSignal)),
});
export type WriteSafetensorsOptions = v.InferInput<typeof WriteSafetensorsOptions>;

/** What was written. */
export interface SafetensorsWriteResult {
  /** Names of the files in the folder, without the index. */
  files: string[];
  /** Name of the index, when there is more than one file. */
  index: string | undefined;
  /** Bytes of all tensor data: `metadata.total_size` of the index. */
  totalBytes: number;
}

interface Entry extends SafetensorsSource {
  format: SafetensorsDType;
}

function checkSource(source: SafetensorsSource, seen: Set<string>): Entry {
  const { name, dtype, shape, byteLength } = source;
  const format = toSafetensorsDType(dtype);
  if (format === undefined) {
    throw new DTypeError(
      `[writeSafetensors] ${name}: expected a dtype of ${safetensorsDTypes.join(", ")} or one of ours, got ${String(dtype)}`,
      { name, dtype },
    );
  }
  if (name === "__metadata__" || seen.has(name)) {
    throw new OptionsError(
      `[writeSafetensors] expected distinct tensor names other than __metadata__, got ${JSON.stringify(name)}${seen.has(name) ? " twice" : ""}`,
      { name },
    );
  }
  seen.add(name);
  const expected = shape.every((size) => Number.isSafeInteger(size) && size >= 0)
    ? safetensorsByteLength(format, shape)
    : undefined;
  if (expected === undefined || expected !== byteLength) {
    throw new ShapeError(
      `[writeSafetensors] ${name}: expected ${expected ?? "a whole number of"} bytes for ${format} [${shape}], got ${byteLength}`,
      { name, shape, byteLength },
    );
  }
  return { ...source, format };
}

/**
 * Which tensors share a file, by the rule of huggingface_hub: in the order given, a file is closed when the next tensor
 * would pass the limit; a tensor over the limit is a file of its own, placed before the one being filled.
 * @see huggingface_hub/serialization/_base.py, split_state_dict_into_shards_factory
 */
export function planShards<T extends { byteLength: number }>(tensors: readonly T[], maxShardBytes: number): T[][] {
  const shards: T[][] = [];
  let current: T[] = [];
  let bytes = 0;
  for (const tensor of tensors) {
    if (tensor.byteLength > maxShardBytes) {
      shards.push([tensor]);
      continue;
    }
    if (bytes + tensor.byteLength > maxShardBytes) {
      shards.push(current);
      current = [];
      bytes = 0;
    }
    current.push(tensor);
    bytes += tensor.byteLength;
  }
  if (current.length > 0 || shards.length === 0) shards.push(current);
  return shards;
}

/** Widest elements first, then by name, as the reference writer: every tensor's data is aligned to its element. */
function inFileOrder(shard: Entry[]): Entry[] {
  const rank = (entry: Entry): number => safetensorsDTypes.indexOf(entry.format);
  return [...shard].sort((a, b) => rank(b) - rank(a) || (a.name < b.name ? -1 : 1));
}

function encodeHeader(entries: Entry[], metadata: Record<string, string>): Uint8Array {
  let end = 0;
  const header: [string, unknown][] = entries.map((entry) => [
    entry.name,
    { dtype: entry.format, shape: entry.shape, data_offsets: [end, (end += entry.byteLength)] },
  ]);
  if (Object.keys(metadata).length > 0) header.unshift(["__metadata__", metadata]);
  // Written entry by entry: an object would put names that look like numbers first.
  const json = new TextEncoder().encode(
    `{${header.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",")}}`,
  );
  const padded = Math.ceil(json.length / 8) * 8;
  if (padded > maxHeaderBytes)
    throw new FormatError(`[writeSafetensors] expected a header of at most ${maxHeaderBytes} bytes, got ${padded}`);
  const bytes = new Uint8Array(8 + padded).fill(0x20, 8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(json, 8);
  return bytes;
}

async function writeFileSynced(path: string, parts: () => AsyncIterable<Uint8Array>): Promise<void> {
  const file = await open(path, "wx");
  try {
    for await (const part of parts()) {
      for (let done = 0; done < part.length;) {
        done += (await file.write(part, done, Math.min(part.length - done, 1 << 30))).bytesWritten;
      }
    }
    await file.sync();
  } finally {
    await file.close();
  }
}

/**
 * Writes tensors into a folder as `<baseName>.safetensors`, or, when they do not fit into `maxShardBytes`, as
 * `<baseName>-00001-of-0000N.safetensors` with `<baseName>.safetensors.index.json` (`metadata.total_size` and the sorted
 * `weight_map`, as transformers writes it). Names and sizes are collected first; the data is then asked for tensor by
 * tensor, so that one is in memory at a time (in the order of each file: widest elements first, then by name).
 *
 * Everything goes to temporary names, is flushed, and is renamed at the end, the index last; only then are the files of an
 * earlier save under the same base name removed. On an error the temporary files go and the earlier save stays.
 *
 * @param folder  made if absent
 * @throws {ShapeError} a byte length that does not fit its shape, or data of another length than announced
 * @throws {DTypeError} an element type that the format lacks
 * @throws {OptionsError} wrong options, or a name twice
 * @throws {IoError} the folder cannot be written
 */
export async function writeSafetensors(
  folder: string,
  tensors: Iterable<SafetensorsSource> | AsyncIterable<SafetensorsSource>,
  options: WriteSafetensorsOptions = {},
): Promise<SafetensorsWriteResult> {
  const { maxShardBytes, metadata, baseName, signal } = parseOptions(
    WriteSafetensorsOptions,
    options,
    "writeSafetensors",
  );
  const entries: Entry[] = [];
  const seen = new Set<string>();
  for await (const source of tensors) entries.push(checkSource(source, seen));

  const shards = planShards(entries, maxShardBytes).map(inFileOrder);
  const digits = (value: number): string => String(value).padStart(5, "0");
  const single = `${baseName}.safetensors`;
  const files =
    shards.length === 1
      ? [single]
      : shards.map((_, index) => `${baseName}-${digits(index + 1)}-of-${digits(shards.length)}.safetensors`);
  const index = shards.length === 1 ? undefined : `${single}.index.json`;
  const totalBytes = entries.reduce((sum, entry) => sum + entry.byteLength, 0);

  const mark = `.tmp-${process.pid}-${randomBytes(4).toString("hex")}`;
  const temporary = (name: string): string => join(folder, `.${name}${mark}`);
  const pending: string[] = [];
  try {
    await mkdir(folder, { recursive: true });
    for (const [position, shard] of shards.entries()) {
      const name = files[position]!;
      pending.push(name);
      await writeFileSynced(temporary(name), async function* () {
        yield encodeHeader(shard, metadata);
        for (const entry of shard) {
          signal?.throwIfAborted();
          const data = await entry.bytes();
          if (data.byteLength !== entry.byteLength) {
            throw new ShapeError(
              `[writeSafetensors] ${entry.name}: expected ${entry.byteLength} bytes, got ${data.byteLength}`,
              { name: entry.name },
            );
          }
          yield data;
        }
      });
    }
    if (index !== undefined) {
      const places = shards.flatMap((shard, position) =>
        shard.map((entry): [string, string] => [entry.name, files[position]!]),
      );
      places.sort(([a], [b]) => (a < b ? -1 : 1));
      const map = places.map(([name, file]) => `    ${JSON.stringify(name)}: ${JSON.stringify(file)}`).join(",\n");
      const text = `{\n  "metadata": {\n    "total_size": ${totalBytes}\n  },\n  "weight_map": {\n${map}\n  }\n}\n`;
      pending.push(index);
      await writeFileSynced(temporary(index), async function* () {
        yield new TextEncoder().encode(text);
      });
    }
    signal?.throwIfAborted();
    while (pending.length > 0) {
      await rename(temporary(pending[0]!), join(folder, pending[0]!));
      pending.shift();
    }
    const ours = new Set([...files, index]);
    for (const name of await readdir(folder)) {
      if (!ours.has(name) && belongsTo(baseName, name)) await rm(join(folder, name), { force: true });
    }
  } catch (error) {
    await Promise.all(pending.map((name) => rm(temporary(name), { force: true })));
    if (LlmError.isInstance(error) || signal?.aborted || (error as NodeJS.ErrnoException).syscall === undefined)
      throw error;
    throw new IoError(
      `[writeSafetensors] cannot write ${folder}: ${(error as Error).message}`,
      { file: folder },
      error,
    );
  }
  return { files, index, totalBytes };
}

/** True for the single file, the index and the shards of a base name. */
function belongsTo(baseName: string, name: string): boolean {
  if (name === `${baseName}.safetensors` || name === `${baseName}.safetensors.index.json`) return true;
  return name.startsWith(`${baseName}-`) && /^-\d{5}-of-\d{5}\.safetensors$/.test(name.slice(baseName.length));
}
