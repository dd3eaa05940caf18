import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { cudaProblem, DeviceError, memory, openSafetensors, synchronize, writeSafetensors } from "@llm/core";
import { byteTokenizer, tinyModel } from "@llm/testing";
import { afterAll, describe, expect, it } from "vitest";
import { type CausalLM, createModel, loadModel } from "./index.js";

const scratch = mkdtempSync(join(tmpdir(), "load-model-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const ids = Int32Array.from({ length: 40 }, (_, i) => (i * 37) % 259);
function logitsOf(model: CausalLM): Float32Array {
  const t = model.logits(ids);
  const values = t.dataSync() as Float32Array;
  t.dispose();
  return values;
}
const difference = (a: Float32Array, b: Float32Array): number =>
  a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

async function saved(options: Parameters<typeof tinyModel>[0] = {}, dtype?: "f32" | "bf16" | "f16"): Promise<string> {
  const folder = mkdtempSync(join(scratch, "m-"));
  const model = tinyModel(options);
  await model.save(folder, dtype ? { dtype } : {});
  model.dispose();
  return folder;
}

/** Changes config.json. */
function edit(folder: string, change: (config: Record<string, unknown>) => void): string {
  const path = join(folder, "config.json");
  const config = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  change(config);
  writeFileSync(path, JSON.stringify(config));
  return folder;
}

describe("dtypes of weights", () => {
  it.each([
    ["bf16", 2 ** -8],
    ["f16", 2 ** -11],
  ] as const)(
    "a %s folder loads as it is, casts to f32 exactly, and computes what f32 computes within rounding",
    async (dtype, unit) => {
      const folder = await saved({ std: 0.3 }, dtype);
      expect(JSON.parse(readFileSync(join(folder, "config.json"), "utf8"))).toMatchObject({
        torch_dtype: dtype === "bf16" ? "bfloat16" : "float16",
      });
      const narrow = await loadModel(folder);
      const wide = await loadModel(folder, { dtype: "f32" });
      expect([narrow.dtype, wide.dtype]).toEqual([dtype, "f32"]);
      for (const [name, t] of narrow.decoder.namedTensors()) expect(t.dtype, name).toBe(dtype);
      const castWeights = new Map(wide.decoder.namedTensors());
      for (const [name, t] of narrow.decoder.namedTensors())
        expect(castWeights.get(name)!.dataSync(), name).toEqual(t.dataSync());
      const [a, b] = [logitsOf(narrow), logitsOf(wide)];
      const scale = b.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
      expect(difference(a, b)).toBeLessThan(scale * unit * 16);
      expect(difference(a, b)).toBeGreaterThan(0);
      for (const model of [narrow, wide]) {
        let tokens = 0;
        for await (const e of model.generate(["abc"], { maxTokens: 6, ignoreEos: true }))
          if (e.type === "finish") tokens = e.tokenIds.length;
        expect(tokens).toBe(6);
        model.dispose();
      }
    },
  );

  it("f32 → bf16 at load equals saving as bf16", async () => {
    const [asF32, asBf16] = [await saved({ seed: 2 }), await saved({ seed: 2 }, "bf16")];
    const [a, b] = [await loadModel(asF32, { dtype: "bf16" }), await loadModel(asBf16)];
    expect(logitsOf(a)).toEqual(logitsOf(b));
    a.dispose();
    b.dispose();
  });
});

describe("what a folder may not be", () => {
  it("an absent device, an unknown option, a broken config: typed errors that say what was expected", async () => {
    const folder = await saved();
    if (cudaProblem() !== null) {
      await expect(loadModel(folder, { device: "cuda" })).rejects.toMatchObject({
        code: "DEVICE",
        message: expect.stringMatching(/^\[device\] cuda: /),
      });
      expect(() => createModel({}, byteTokenizer(), { device: "cuda" })).toThrow(DeviceError);
    }
    await expect(loadModel(folder, { device: "tpu" as never })).rejects.toMatchObject({ code: "OPTIONS" });
    await expect(loadModel(folder, { dtpye: "f32" } as never)).rejects.toMatchObject({
      code: "OPTIONS",
      message: /dtpye/,
    });
    edit(folder, (c) => (c["rope_magic"] = 1));
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "UNSUPPORTED", message: /rope_magic/ });
    edit(folder, (c) => {
      delete c["rope_magic"];
      c["hidden_size"] = "big";
    });
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "FORMAT", message: /hidden_size/ });
    edit(folder, (c) => (c["model_type"] = "gpt_bigcode"));
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "UNSUPPORTED", message: /gpt_bigcode/ });
    writeFileSync(join(folder, "config.json"), "{");
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "FORMAT", message: /not valid JSON/ });
    rmSync(join(folder, "config.json"));
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "IO" });
  });

  it("tensors that are missing, left over or of another shape are named, and nothing stays in memory", async () => {
    const folder = await saved();
    const handle = openSafetensors(folder);
    const tensors = [...handle.tensors].map(([name, { dtype, shape }]) => {
      const data = handle.read(name).slice();
      return { name, dtype, shape, byteLength: data.length, bytes: () => data };
    });
    handle.close();
    const before = memory().liveTensors;
    const lost = "model.layers.1.mlp.down_proj.weight";
    await writeSafetensors(
      folder,
      tensors.filter((t) => t.name !== lost),
    );
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "FORMAT", message: new RegExp(lost) });
    await writeSafetensors(folder, [
      ...tensors,
      { name: "model.extra", dtype: "F32", shape: [1], byteLength: 4, bytes: () => new Uint8Array(4) },
    ]);
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "FORMAT", message: /model\.extra/ });
    await writeSafetensors(
      folder,
      tensors.map((t) => (t.name === lost ? { ...t, shape: [...t.shape].reverse() } : t)),
    );
    await expect(loadModel(folder)).rejects.toMatchObject({
      code: "SHAPE",
      message: /must be \[32, 64\], got \[64, 32\]/,
    });
    await collected(() => memory().liveTensors <= before);
    expect(memory().liveTensors).toBeLessThanOrEqual(before);
  });

  it.each([
    [{ quant_method: "gptq", bits: 4 }, /quant_method must be "awq", got "gptq"/],
    [{ quant_method: "awq", version: "gemv", bits: 4, group_size: 32 }, /version must be "gemm", got "gemv"/],
    [{ quant_method: "awq", version: "gemm", bits: 8, group_size: 32 }, /bits must be 4, got 8/],
    [{ quant_method: "awq", version: "gemm", bits: 4, group_size: -1 }, /group_size must be a positive number, got -1/],
    [{ quant_method: "awq", version: "gemm", bits: 4, group_size: 32, zero_point: false }, /zero_point must be true/],
  ])("a quantization that is not AWQ gemm with 4 bits: %j", async (quantization, message) => {
    const folder = edit(await saved(), (c) => (c["quantization_config"] = quantization));
    await expect(loadModel(folder)).rejects.toMatchObject({ code: "FORMAT", message });
  });
});

setFlagsFromString("--expose-gc");
const gc = runInNewContext("gc") as () => void;

/** Collects until the condition holds, a few rounds at most: finalizers run between turns of the event loop. */
async function collected(condition: () => boolean): Promise<void> {
  for (let round = 0; round < 20 && !condition(); round++) {
    gc();
    await new Promise((resolve) => setTimeout(resolve, 5));
    synchronize();
  }
}

describe("a model that nobody disposes", () => {
  it("is freed when it is collected: a loop that loads, uses and drops models does not grow", async () => {
    const folder = await saved({ hidden: 64, layers: 3 });
    const once = async (): Promise<void> => {
      const model = await loadModel(folder, { dtype: "bf16" });
      for await (const _ of model.generate(["abc"], { maxTokens: 3, ignoreEos: true }));
      logitsOf(model);
    };
    await once();
    let settled = 0;
    await collected(() => settled++ > 3);
    const before = memory();
    for (let i = 0; i < 6; i++) await once();
    await collected(() => memory().liveTensors <= before.liveTensors);
    expect(memory().liveTensors).toBeLessThanOrEqual(before.liveTensors);
    expect(memory().byTag.weights).toBeLessThanOrEqual(before.byTag.weights);
  });
});
