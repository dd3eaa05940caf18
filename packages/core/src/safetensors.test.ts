import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseByteSize } from "./byte-size.js";
import { LlmError } from "./errors.js";
import type { SafetensorsSource } from "./safetensors-write.js";
import { planShards, writeSafetensors } from "./safetensors-write.js";
import { openSafetensors, readSafetensorsHeader, safetensorsDType } from "./safetensors.js";

let root: string;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "safetensors-"));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

let folders = 0;
function newFolder(): string {
  const folder = join(root, String(folders++));
  mkdirSync(folder);
  return folder;
}

/** A file from a header (object or raw text) and data. */
function makeFile(header: unknown, data: Uint8Array | number = 0, length?: bigint): string {
  const json = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(length ?? BigInt(json.length));
  const path = join(newFolder(), "x.safetensors");
  writeFileSync(path, Buffer.concat([size, json, typeof data === "number" ? Buffer.alloc(data) : data]));
  return path;
}

function caught(run: () => unknown): LlmError {
  try {
    run();
  } catch (error) {
    if (LlmError.isInstance(error)) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

const f32 = (begin: number, shape: number[]): object => ({
  dtype: "F32",
  shape,
  data_offsets: [begin, begin + 4 * shape.reduce((a, b) => a * b, 1)],
});

function source(name: string, values: Float32Array, shape = [values.length]): SafetensorsSource {
  return { name, dtype: "f32", shape, byteLength: values.byteLength, bytes: () => new Uint8Array(values.buffer) };
}

describe("readSafetensorsHeader", () => {
  it("gives names, shapes, absolute offsets and metadata", () => {
    const path = makeFile(
      { __metadata__: { format: "pt" }, b: f32(8, [1, 2]), a: f32(0, [2]), scalar: f32(16, []), none: f32(20, [0, 3]) },
      20,
    );
    const { tensors, metadata, dataOffset } = readSafetensorsHeader(path);
    expect(tensors.map(({ name, offset, bytes }) => [name, offset - dataOffset, bytes])).toEqual([
      ["a", 0, 8],
      ["b", 8, 8],
      ["scalar", 16, 4],
      ["none", 20, 0],
    ]);
    expect(metadata).toEqual({ format: "pt" });
  });

  it("refuses every kind of broken header with the file and the place", () => {
    const cases: [string, RegExp][] = [
      [makeFile("", 0).replace("x.safetensors", "absent"), /cannot open/],
      [makeFile({}, 0, 100_000_001n), /at most 100000000 bytes, got 100000001/],
      [makeFile({}, 0, 2n ** 63n), /at most 100000000/],
      [makeFile({}, 0, 50n), /file ends at byte 10/],
      [makeFile("{nope"), /JSON object/],
      [makeFile("[]"), /must start with "\{"/],
      [makeFile(" {}"), /must start with "\{"/],
      [makeFile('{"a":1}'), /"a" to be \{dtype/],
      [makeFile({ __metadata__: { a: 1 } }), /strings to strings/],
      [makeFile({ a: { ...f32(0, [1]), dtype: "F31" } }, 4), /one of BOOL.*got "F31"/],
      [makeFile({ a: { ...f32(0, [1]), dtype: "constructor" } }, 4), /got "constructor"/],
      [makeFile({ a: { dtype: "F32", shape: [-1], data_offsets: [0, 4] } }, 4), /whole numbers/],
      [makeFile({ a: { dtype: "F32", shape: [1.5], data_offsets: [0, 6] } }, 6), /whole numbers/],
      [
        makeFile({ a: { dtype: "F32", shape: [2 ** 40, 2 ** 40], data_offsets: [0, 4] } }, 4),
        /a whole number of bytes/,
      ],
      [makeFile({ a: { dtype: "F4", shape: [3], data_offsets: [0, 2] } }, 2), /a whole number of bytes/],
      [
        makeFile({ a: { dtype: "F32", shape: [2], data_offsets: [0, 4] } }, 4),
        /expected 8 bytes for "a" of F32 \[2\], got 4/,
      ],
      [makeFile({ a: { dtype: "F32", shape: [1], data_offsets: [4, 0] } }, 4), /\[begin, end\]/],
      [makeFile({ a: { dtype: "F32", shape: [1], data_offsets: [0] } }, 4), /\[begin, end\]/],
      [makeFile({ a: f32(4, [1]) }, 8), /a hole of 4 bytes before/],
      [makeFile({ a: f32(0, [2]), b: f32(4, [2]) }, 12), /an overlap with/],
      [makeFile({ a: f32(0, [2]) }, 9), /belong to no tensor/],
      [makeFile({ a: f32(0, [2]) }, 7), /cut off/],
      [makeFile(`{"a":${JSON.stringify(f32(0, [1]))},"a":${JSON.stringify(f32(0, [1]))}}`, 4), /"a" twice/],
      [makeFile(`{"a":${JSON.stringify(f32(0, [1]))},"\\u0061":${JSON.stringify(f32(0, [1]))}}`, 4), /"a" twice/],
    ];
    for (const [path, message] of cases) {
      const error = caught(() => readSafetensorsHeader(path));
      expect(error.message).toMatch(message);
      expect(error.data.file).toBe(path);
      if (error.code !== "IO") expect("offset" in error.data || "key" in error.data).toBe(true);
    }
    const short = join(newFolder(), "short.safetensors");
    writeFileSync(short, "1234567");
    expect(caught(() => readSafetensorsHeader(short)).code).toBe("FORMAT");
  });

  it("refuses bytes that are not UTF-8", () => {
    const path = makeFile({ ab: f32(0, [1]) }, 4);
    const bytes = readFileSync(path);
    bytes[10] = 0xff;
    writeFileSync(path, bytes);
    expect(caught(() => readSafetensorsHeader(path)).code).toBe("FORMAT");
  });

  it("takes names such as __proto__ as plain names", () => {
    const path = makeFile(`{"__proto__":${JSON.stringify(f32(0, [1]))}}`, 4);
    expect([...openSafetensors(path).tensors.keys()]).toEqual(["__proto__"]);
  });

  it("either throws a typed error or returns a covering header for 3000 mutated files", () => {
    let seed = 1;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    const path = makeFile(
      {
        __metadata__: { format: "pt" },
        a: f32(0, [2, 3]),
        b: f32(24, [4]),
        c: { dtype: "U8", shape: [5], data_offsets: [40, 45] },
      },
      45,
    );
    const good = readFileSync(path);
    let refused = 0;
    for (let round = 0; round < 3000; round++) {
      let bytes = Buffer.from(good);
      for (let change = random(3); change >= 0; change--) {
        const kind = random(4);
        const at = random(bytes.length - 45);
        if (kind === 0) bytes[at] = random(256);
        else if (kind === 1) bytes = bytes.subarray(0, 1 + random(bytes.length));
        else if (kind === 2) bytes[at] = 48 + random(10);
        else bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random(3))]);
        if (bytes.length < 60) break;
      }
      writeFileSync(path, bytes);
      try {
        const { tensors, dataOffset } = readSafetensorsHeader(path);
        expect(tensors.reduce((sum, tensor) => sum + tensor.bytes, dataOffset)).toBe(bytes.length);
      } catch (error) {
        expect(LlmError.isInstance(error, "FORMAT"), String(error)).toBe(true);
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(2000);
    expect(refused).toBeLessThan(3000);
  });
});

describe("openSafetensors", () => {
  it("reads what writeSafetensors wrote, as one file and as shards, to the bit", async () => {
    const values = [5, 3, 7, 1, 2].map((size, at) =>
      Float32Array.from({ length: size }, (_, index) => at * 10 + index + 0.5),
    );
    for (const maxShardBytes of [1e9, 32, 16, 1]) {
      const folder = newFolder();
      const written = await writeSafetensors(
        folder,
        values.map((value, at) => source(`t.${at}`, value)),
        { maxShardBytes },
      );
      expect(written.index === undefined).toBe(maxShardBytes === 1e9);
      const handle = openSafetensors(folder);
      expect(handle.metadata).toEqual({ format: "pt" });
      expect(handle.tensors.size).toBe(5);
      for (const [at, value] of values.entries()) {
        const bytes = handle.read(`t.${at}`);
        expect(bytes.byteOffset).toBe(0);
        expect(new Float32Array(bytes.buffer)).toEqual(value);
      }
      handle.close();
      handle.close();
      expect(caught(() => handle.read("t.0")).code).toBe("DISPOSED");
      expect(handle.files.map((file) => file.slice(folder.length + 1))).toEqual([...written.files].sort());
    }
  });

  it("lists types that have no DType and refuses only to name theirs", () => {
    const path = makeFile(
      {
        a: { dtype: "F64", shape: [1], data_offsets: [0, 8] },
        b: { dtype: "BF16", shape: [1], data_offsets: [8, 10] },
      },
      10,
    );
    const { tensors, read, close } = openSafetensors(path);
    expect(read("a").length).toBe(8);
    expect(safetensorsDType(tensors.get("b")!)).toBe("bf16");
    const error = caught(() => safetensorsDType(tensors.get("a")!));
    expect(error).toMatchObject({ code: "FORMAT", data: { key: "a" } });
    expect(error.message).toMatch(/dtype F64, expected one of F32, F16/);
    expect(caught(() => read("c")).message).toMatch(/no tensor "c"/);
    close();
  });

  it("names a missing shard and every disagreement between index and headers", async () => {
    const folder = newFolder();
    await writeSafetensors(folder, [source("a", new Float32Array(4)), source("b", new Float32Array(4))], {
      maxShardBytes: 16,
    });
    const indexPath = join(folder, "model.safetensors.index.json");
    const index = JSON.parse(readFileSync(indexPath, "utf8"));
    const withMap = (map: unknown): LlmError => {
      writeFileSync(indexPath, JSON.stringify({ ...index, weight_map: map }));
      return caught(() => openSafetensors(folder));
    };
    const [one, two] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    expect(withMap({ a: one, b: one }).message).toMatch(/expected "b" in model-00001/);
    expect(withMap({ a: two, b: one }).message).toMatch(
      /holds "b", but .* puts it in model-00001|holds "a", but .* puts it in model-00002/,
    );
    expect(withMap({ a: one, b: two, c: two }).message).toMatch(/expected "c" in model-00002/);
    expect(withMap({ b: two, c: one }).message).toMatch(/does not list it/);
    expect(withMap({ a: one, b: "../b.safetensors" }).message).toMatch(/a name in the same folder/);
    expect(withMap({ a: one, b: 3 }).message).toMatch(/a name in the same folder/);
    expect(withMap(undefined).message).toMatch(/"weight_map"/);
    expect(withMap({ a: one, b: "model-00003-of-00003.safetensors" }).message).toMatch(/missing: model-00003-of-00003/);
    writeFileSync(indexPath, "{");
    expect(caught(() => openSafetensors(folder)).code).toBe("FORMAT");
    expect(caught(() => openSafetensors(newFolder())).message).toMatch(/found neither/);
    expect(caught(() => openSafetensors(join(folder, "absent"))).code).toBe("IO");
  });

  it("says so when a file shrinks after it was opened", () => {
    const path = makeFile({ a: f32(0, [4]) }, 16);
    const handle = openSafetensors(path);
    truncateSync(path, readFileSync(path).length - 4);
    expect(caught(() => handle.read("a")).code).toBe("IO");
    handle.close();
  });
});

describe("writeSafetensors", () => {
  it("aligns the header to 8 bytes and orders wide elements before narrow ones", async () => {
    const folder = newFolder();
    await writeSafetensors(folder, [
      { name: "u", dtype: "u8", shape: [3], byteLength: 3, bytes: () => Uint8Array.of(1, 2, 3) },
      source("b", new Float32Array(2)),
      source("a", new Float32Array(2)),
      { name: "d", dtype: "F64", shape: [], byteLength: 8, bytes: () => new Uint8Array(8) },
    ]);
    const { tensors, dataOffset } = readSafetensorsHeader(join(folder, "model.safetensors"));
    expect(tensors.map(({ name }) => name)).toEqual(["d", "a", "b", "u"]);
    expect(dataOffset % 8).toBe(0);
  });

  it("writes the index as transformers does and keeps one tensor in memory at a time", async () => {
    const folder = newFolder();
    let alive = 0;
    let asked = 0;
    async function* tensors(): AsyncIterable<SafetensorsSource> {
      for (const name of ["z", "y", "x"]) {
        yield {
          ...source(name, new Float32Array(4)),
          bytes: async () => {
            alive++;
            asked++;
            expect(alive).toBe(1);
            await Promise.resolve();
            alive--;
            return new Uint8Array(16);
          },
        };
      }
    }
    const result = await writeSafetensors(folder, tensors(), { maxShardBytes: "32B" });
    expect(asked).toBe(3);
    expect(result).toEqual({
      files: ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
      index: "model.safetensors.index.json",
      totalBytes: 48,
    });
    expect(readFileSync(join(folder, result.index!), "utf8")).toBe(`{
  "metadata": {
    "total_size": 48
  },
  "weight_map": {
    "x": "model-00002-of-00002.safetensors",
    "y": "model-00001-of-00002.safetensors",
    "z": "model-00001-of-00002.safetensors"
  }
}
`);
  });

  it("splits by huggingface_hub's rule: a tensor over the limit goes alone, before the file being filled", () => {
    const split = (sizes: number[], limit: number): number[][] =>
      planShards(
        sizes.map((byteLength) => ({ byteLength })),
        limit,
      ).map((shard) => shard.map(({ byteLength }) => byteLength));
    expect(split([4, 20, 4, 4, 4], 10)).toEqual([[20], [4, 4], [4, 4]]);
    expect(split([10, 10, 1], 10)).toEqual([[10], [10], [1]]);
    expect(split([11, 12], 10)).toEqual([[11], [12]]);
    expect(split([], 10)).toEqual([[]]);
  });

  it("removes an earlier save of the same base name only after success", async () => {
    const folder = newFolder();
    const tensors = ["a", "b", "c"].map((name) => source(name, new Float32Array(4)));
    const strangers = [
      "model-00001-of-00002.bin",
      "other.safetensors",
      "model-extra.safetensors",
      "adapter_model.safetensors",
    ];
    for (const name of strangers) appendFileSync(join(folder, name), "");
    await writeSafetensors(folder, tensors, { maxShardBytes: 16 });
    const sharded = readdirSync(folder).sort();
    expect(sharded).toContain("model-00003-of-00003.safetensors");

    const broken = { ...source("d", new Float32Array(4)), bytes: () => Promise.reject(new Error("no data")) };
    await expect(writeSafetensors(folder, [...tensors, broken])).rejects.toThrow("no data");
    const wrong = { ...source("d", new Float32Array(4)), bytes: () => new Uint8Array(15) };
    await expect(writeSafetensors(folder, [wrong])).rejects.toMatchObject({ code: "SHAPE" });
    await expect(writeSafetensors(folder, tensors, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i);
    expect(readdirSync(folder).sort()).toEqual(sharded);
    expect(openSafetensors(folder).tensors.size).toBe(3);

    await writeSafetensors(folder, tensors);
    expect(readdirSync(folder).sort()).toEqual([...strangers, "model.safetensors"].sort());
    await writeSafetensors(folder, tensors, { maxShardBytes: 32 });
    expect(existsSync(join(folder, "model.safetensors"))).toBe(false);
    expect(openSafetensors(folder).files.length).toBe(2);
    await writeSafetensors(folder, tensors.slice(1), { baseName: "adapter_model" });
    expect(openSafetensors(folder).tensors.size).toBe(3);
    expect(openSafetensors(folder, { baseName: "adapter_model" }).tensors.size).toBe(2);
  });

  it("refuses sources that contradict themselves", async () => {
    const good = source("a", new Float32Array(4));
    const refusals: [SafetensorsSource[], string][] = [
      [[good, good], "OPTIONS"],
      [[{ ...good, name: "__metadata__" }], "OPTIONS"],
      [[{ ...good, shape: [5] }], "SHAPE"],
      [[{ ...good, shape: [-4] }], "SHAPE"],
      [[{ ...good, dtype: "f31" as "f32" }], "DTYPE"],
    ];
    for (const [tensors, code] of refusals) {
      const folder = newFolder();
      await expect(writeSafetensors(folder, tensors)).rejects.toMatchObject({ code });
      expect(readdirSync(folder)).toEqual([]);
    }
    await expect(writeSafetensors(newFolder(), [], { maxShardBytes: "5 parsecs" })).rejects.toMatchObject({
      code: "OPTIONS",
    });
    await expect(writeSafetensors(newFolder(), [], { shards: 3 } as object)).rejects.toMatchObject({ code: "OPTIONS" });
    await expect(writeSafetensors(newFolder(), [], { baseName: "../x" })).rejects.toMatchObject({ code: "OPTIONS" });
    await expect(writeSafetensors(join(makeFile({}), "under-a-file"), [])).rejects.toMatchObject({ code: "IO" });
  });

  it("writes an empty set and names that look like numbers", async () => {
    const folder = newFolder();
    await writeSafetensors(folder, []);
    expect(openSafetensors(folder).tensors.size).toBe(0);
    await writeSafetensors(folder, [
      source("b", new Float32Array(1)),
      source("10", new Float32Array(1)),
      source("9", new Float32Array(1)),
    ]);
    expect([...openSafetensors(folder).tensors.keys()]).toEqual(["10", "9", "b"]);
  });
});

describe("parseByteSize", () => {
  it("reads decimal and binary units", () => {
    const cases: [string | number, number][] = [
      ["2GB", 2e9],
      ["512 MiB", 512 * 2 ** 20],
      ["1.5kb", 1500],
      ["4096", 4096],
      [4096, 4096],
      ["0.3B", 0],
      ["1tib", 2 ** 40],
    ];
    for (const [text, bytes] of cases) expect(parseByteSize(text)).toBe(bytes);
  });
  it("refuses everything else", () => {
    for (const text of [
      "",
      "GB",
      "2 G B",
      "-1",
      "1e9",
      "2PB",
      "NaN",
      Number.NaN,
      -1,
      Number.POSITIVE_INFINITY,
      "9007199TB",
    ]) {
      expect(caught(() => parseByteSize(text)).code).toBe("OPTIONS");
    }
  });
});

const assets = resolve(process.env["LLM_ASSETS"] ?? join(import.meta.dirname, "../../../../shared/assets"));
const samples = join(assets, "num-safetensors");
if (!existsSync(samples)) console.log(`skipped: safetensors samples, ${samples} is absent (set LLM_ASSETS)`);

describe.skipIf(!existsSync(samples))("files of another writer", () => {
  it("are read to the value", () => {
    const read = (file: string): { dtype: string; shape: readonly number[]; bytes: Uint8Array<ArrayBuffer> } => {
      const handle = openSafetensors(join(samples, file));
      const tensor = handle.tensors.get("embedding")!;
      const bytes = handle.read("embedding");
      handle.close();
      return { dtype: tensor.dtype, shape: tensor.shape, bytes };
    };
    const one = read("tensor-1d-int32.safetensors");
    expect([one.dtype, one.shape, [...new Int32Array(one.bytes.buffer)]]).toEqual(["I32", [3], [1, 2, 3]]);
    const two = read("tensor-2d-float64.safetensors");
    expect([two.dtype, two.shape, [...new Float64Array(two.bytes.buffer)]]).toEqual([
      "F64",
      [2, 3],
      [1, 2, 3, 24, 25, 26],
    ]);
    const three = read("tensor-3d-float32.safetensors");
    expect([three.dtype, three.bytes.length]).toEqual(["F32", 4 * three.shape.reduce((a, b) => a * b)]);
    expect(read("tensor-4d-float32.safetensors").shape.length).toBe(4);
  });
});
