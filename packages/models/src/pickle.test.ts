import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { LlmError, openSafetensors } from "@llm/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { convertLlama2cCheckpoint } from "./llama2c.js";
import { unpickle } from "./pickle.js";
import { isTorchTensor, readTorchFile } from "./torch-file.js";
import type { TorchTensor, TorchValue } from "./torch-file.js";

const fixtures = join(import.meta.dirname, "fixtures", "torch");
const assets = resolve(process.env["LLM_ASSETS"] ?? join(import.meta.dirname, "../../../../shared/assets"));
const stories = join(assets, "w-stories260K");
const torchtune = join(assets, "num-torchtune");
for (const folder of [stories, torchtune])
  if (!existsSync(folder)) console.log(`skipped: ${folder} is absent (set LLM_ASSETS)`);

let root: string;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "pickle-"));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

type Dict = Map<TorchValue, TorchValue>;
const at = (value: TorchValue, ...keys: TorchValue[]): TorchValue =>
  keys.reduce((map, key) => (map as Dict).get(key)!, value);

function caught(run: () => unknown): LlmError {
  try {
    run();
  } catch (error) {
    if (LlmError.isInstance(error)) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

function write(name: string, content: Uint8Array): string {
  const path = join(root, name);
  writeFileSync(path, content);
  return path;
}

describe("readTorchFile", () => {
  const expected = JSON.parse(readFileSync(join(fixtures, "expected.json"), "utf8")) as Record<
    string,
    { dtype: string; shape: number[]; stride: number[]; hex: string }
  >;

  for (const file of ["new.pt", "old.pt", "protocol4.pt", "deflated.pt", "zip64.pt"]) {
    it(`reads every tensor of ${file} to the bit, contiguous or not`, () => {
      const value = readTorchFile(join(fixtures, file));
      for (const [name, { dtype, shape, stride, hex }] of Object.entries(expected)) {
        const tensor = (name.startsWith("linear.") ? at(value, "state", name) : at(value, name)) as TorchTensor;
        expect(isTorchTensor(tensor), name).toBe(true);
        expect(
          {
            dtype: tensor.dtype,
            shape: tensor.shape,
            stride: tensor.stride,
            hex: Buffer.from(tensor.read()).toString("hex"),
          },
          name,
        ).toEqual({ dtype, shape, stride, hex });
        expect(tensor.byteLength, name).toBe(hex.length / 2);
        expect(tensor.read().byteOffset).toBe(0);
      }
      expect((at(value, "parameter") as TorchTensor).read()).toEqual(
        (at(value, "state", "linear.weight") as TorchTensor).read(),
      );
    });
  }

  it("reads the plain data around the tensors", () => {
    for (const file of ["new.pt", "old.pt"]) {
      const value = readTorchFile(join(fixtures, file));
      expect([...(at(value, "ordered") as Dict)]).toEqual([
        ["b", 1],
        ["a", 2],
      ]);
      expect(at(value, "size")).toEqual([2, 3]);
      expect(at(value, "dtype")).toBe("torch.bfloat16");
      expect(at(value, 5)).toBe("five");
      const plain = at(value, "plain") as Dict;
      expect([
        plain.get("int"),
        plain.get("negative"),
        plain.get("big"),
        plain.get("float"),
        plain.get("text"),
        plain.get("none"),
      ]).toEqual([7, -3, 2n ** 70n, 0.25, "héllo 你好", null]);
      expect([plain.get("yes"), plain.get("no"), plain.get("bytes_like")]).toEqual([true, false, "x".repeat(300)]);
      expect(JSON.stringify([plain.get("list"), plain.get("tuple")])).toBe('[[1,[2,3],[]],[1,"a"]]');
    }
  });

  it("refuses to call anything else and names it", () => {
    for (const file of ["evil.pt", "evil-old.pt"]) {
      const error = caught(() => readTorchFile(join(fixtures, file)));
      expect(error).toMatchObject({ code: "FORMAT", data: { global: "posix.system" } });
      expect(error.message).toMatch(/refused: the file asks for posix\.system/);
    }
    expect(existsSync("this-must-not-exist")).toBe(false);
  });

  it("says what other files are", () => {
    expect(caught(() => readTorchFile(join(fixtures, "plain.pkl"))).message).toMatch(/magic number/);
    expect(caught(() => readTorchFile(join(fixtures, "make.py"))).message).toMatch(/written by torch\.save/);
    expect(caught(() => readTorchFile(join(root, "absent"))).code).toBe("IO");
    expect(caught(() => readTorchFile(write("empty", new Uint8Array()))).code).toBe("FORMAT");
    const tar = new Uint8Array(600);
    tar.set(Buffer.from("ustar"), 257);
    expect(caught(() => readTorchFile(write("tar", tar))).code).toBe("UNSUPPORTED");
  });

  it("notices a flipped bit in a tensor", () => {
    const bytes = readFileSync(join(fixtures, "llama2c.pt"));
    const tensor = at(readTorchFile(join(fixtures, "llama2c.pt")), "model", "_orig_mod.norm.weight") as TorchTensor;
    const place = bytes.indexOf(Buffer.from(tensor.read()));
    bytes[place]! ^= 1;
    const damaged = at(readTorchFile(write("flipped.pt", bytes)), "model", "_orig_mod.norm.weight") as TorchTensor;
    expect(caught(() => damaged.read()).message).toMatch(/CRC-32 differs/);
  });

  it("either throws a typed error or reads, for hundreds of mutated and cut files", () => {
    let seed = 7;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * below);
    };
    const readAll = (value: TorchValue): void => {
      for (const tensor of (value as Dict).values()) if (isTorchTensor(tensor)) tensor.read();
    };
    let refused = 0;
    for (const file of ["old.pt", "new.pt", "deflated.pt"]) {
      const good = readFileSync(join(fixtures, file));
      // The head of the old form, the table of contents of the zip form: where damage is seen.
      const [from, length] = file === "old.pt" ? [0, 2500] : [good.length - 2500, 2500];
      for (let round = 0; round < 250; round++) {
        let bytes = Buffer.from(good);
        for (let change = random(3); change >= 0; change--) bytes[from + random(length)] = random(256);
        if (round % 8 === 0) bytes = bytes.subarray(0, random(bytes.length));
        const path = write("fuzzed.pt", bytes);
        try {
          readAll(readTorchFile(path));
        } catch (error) {
          expect(LlmError.isInstance(error), String((error as Error).stack)).toBe(true);
          refused++;
        }
      }
    }
    expect(refused).toBeGreaterThan(250);
  });
});

describe("unpickle", () => {
  const read = (pickle: string): unknown =>
    unpickle(Buffer.from(pickle, "latin1"), { file: "x", findGlobal: () => undefined, findPersistent: () => null })
      .value;

  it("reads protocol 0", () => {
    const list = read("(lp0\nI1\naL5L\naF0.5\naVa\\u00e9\naS'b'\naI01\nag0\na.") as unknown[];
    expect(list.slice(0, 6)).toEqual([1, 5, 0.5, "aé", "b", true]);
    expect(list[6]).toBe(list);
    expect(read("(dS'a'\nI1\ns.")).toEqual(new Map([["a", 1]]));
  });

  it("refuses broken stacks, bad opcodes and cut pickles", () => {
    const broken = [
      "",
      ".",
      "0.",
      "(.",
      "K",
      "N",
      "t.",
      "a.",
      "]N(a.",
      "Nu.",
      "(N(u.",
      "g5\n.",
      "h\u0001.",
      "Ix\n.",
      "Fx\n.",
      "S'a\n.",
      "X\u00ff\u00ff\u00ff\u007fa.",
      "\u0080\u0009N.",
      "\u0081.",
      "N}b.",
      "NNR.",
      "cos\nsystem\n.",
      "ios\nsystem\n.",
      "P1\n.",
      "\u008e\u00ff\u00ff\u00ff\u00ff\u00ff\u00ff\u00ff\u00ff.",
    ];
    for (const pickle of broken) expect(caught(() => read(pickle)).code, JSON.stringify(pickle)).toBe("FORMAT");
  });
});

function expectSameTensors(folder: string, reference: string): void {
  const [ours, theirs] = [openSafetensors(folder), openSafetensors(reference)];
  expect([...ours.tensors.keys()].sort()).toEqual([...theirs.tensors.keys()].sort());
  for (const [name, { shape, dtype }] of theirs.tensors) {
    expect([ours.tensors.get(name)!.shape, ours.tensors.get(name)!.dtype], name).toEqual([shape, dtype]);
    expect(Buffer.compare(ours.read(name), theirs.read(name)), name).toBe(0);
  }
  ours.close();
  theirs.close();
}

describe("convertLlama2cCheckpoint", () => {
  it("gives the tensors that transformers' own formula gives", async () => {
    const folder = join(root, "small");
    await convertLlama2cCheckpoint(join(fixtures, "llama2c.pt"), folder);
    expectSameTensors(folder, join(fixtures, "llama2c.safetensors"));
    expect(JSON.parse(readFileSync(join(folder, "config.json"), "utf8"))).toMatchObject({
      hidden_size: 8,
      intermediate_size: 12,
      num_hidden_layers: 2,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      vocab_size: 5,
      max_position_embeddings: 16,
      rms_norm_eps: 1e-6,
      tie_word_embeddings: false,
    });
  });

  it("refuses checkpoints of another kind", async () => {
    await expect(convertLlama2cCheckpoint(join(fixtures, "new.pt"), join(root, "other"))).rejects.toMatchObject({
      code: "FORMAT",
      data: { key: "model_args" },
    });
    expect(existsSync(join(root, "other"))).toBe(false);
  });

  it.skipIf(!existsSync(stories))("turns the real stories260K.pt into the reference folder to the bit", async () => {
    const folder = join(root, "stories");
    await convertLlama2cCheckpoint(join(stories, "stories260K.pt"), folder);
    expectSameTensors(folder, join(stories, "hf"));
    expect(JSON.parse(readFileSync(join(folder, "config.json"), "utf8"))).toEqual(
      JSON.parse(readFileSync(join(stories, "hf", "config.json"), "utf8")),
    );
  });
});

describe.skipIf(!existsSync(torchtune))("torchtune's files", () => {
  it("are read", () => {
    const one = [
      ...(readTorchFile(join(torchtune, "tiny_state_dict_with_one_key.pt")) as Map<TorchValue, TorchTensor>).values(),
    ];
    expect(one.length).toBe(1);
    expect(one[0]!.byteLength).toBe(400);
    const all = readTorchFile(join(torchtune, "tiny_fair_checkpoint.pt")) as Map<string, TorchTensor>;
    expect(all.size).toBe(21);
    expect(all.get("tok_embeddings.weight")!.shape).toEqual([500, 32]);
    for (const tensor of all.values()) expect(tensor.read().length).toBe(tensor.byteLength);
  });
});
