import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type Linear, openSafetensors } from "@llm/core";
import { type CausalLM, createModel, loadModel, packAwq, unpackAwq } from "@llm/models";
import { byteTokenizer, randomDocuments, tinyModel } from "@llm/testing";
import { afterAll, describe, expect, it } from "vitest";
import { quantize, saveQuantized } from "./index.js";

const root = mkdtempSync(join(tmpdir(), "awq-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const calibration = randomDocuments([64, 64], { vocabSize: 259, seed: 7 });
const script = resolve(import.meta.dirname, "../../../tools/oracle/unpack_awq.py");
const numpy = spawnSync("python3", ["-c", "import numpy"]).status === 0;
if (!numpy) console.log("skipped: the NumPy unpacker needs python3 with numpy");

const config = (folder: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Record<string, unknown>;

/** Integers, zeros and scales of every W4 linear. */
const codes = (m: CausalLM): Record<string, unknown> =>
  Object.fromEntries(
    m.decoder
      .linears()
      .flatMap((l) =>
        l.storage.kind === "w4"
          ? [[l.name, [l.storage.q, l.storage.scales, l.storage.zeros].map((t) => t.dataSync())]]
          : [],
      ),
  );

const kinds = (m: CausalLM): Record<string, string> =>
  Object.fromEntries(m.decoder.linears().map((l) => [l.name, l.storage.kind]));

const model = (modelType: string, extra: Record<string, unknown> = {}): CausalLM =>
  createModel(
    {
      model_type: modelType,
      vocab_size: 259,
      hidden_size: 64,
      intermediate_size: 96,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      max_position_embeddings: 128,
      tie_word_embeddings: false,
      ...extra,
    },
    byteTokenizer(),
    { seed: 1, initStd: 0.1 },
  );

describe("the words of the gemm layout", () => {
  // tools/oracle/unpack_awq.py --golden
  const golden = [
    { q: [0, 1, 2, 3, 4, 5, 6, 7], word: 0x75316420 },
    { q: [8, 8, 8, 8, 8, 8, 8, 8], word: 0x88888888 },
    { q: [15, 3, 9, 0, 12, 7, 1, 8], word: 0x87031c9f },
  ];

  it.each(golden)("hold $q as they should", ({ q, word }) => {
    // Out features 8, in features 2: column k = 0 holds the sequence, k = 1 its reverse.
    const packed = packAwq({
      outFeatures: 8,
      inFeatures: 2,
      group: 2,
      q: Uint8Array.from(q, (v, n) => v | (q[7 - n]! << 4)),
      scales: new Float32Array(8).fill(1),
      zeros: Uint8Array.from(q),
    });
    expect(packed.qweight[0]! >>> 0).toBe(word);
    expect(packed.qzeros[0]! >>> 0).toBe(word);
    const back = unpackAwq(packed.qweight, packed.qzeros, packed.scales_GN, 2, 8, 2);
    expect([...back.q].map((b) => b & 15)).toEqual(q);
    expect([...back.q].map((b) => b >> 4)).toEqual([...q].reverse());
    expect([...back.zeros]).toEqual(q);
  });

  it.skipIf(!numpy)("are those of the NumPy packer", () => {
    const printed = JSON.parse(execFileSync("python3", [script, "--golden"], { encoding: "utf8" })) as {
      q: number[];
      word: string;
    }[];
    expect(printed.map(({ q, word }) => ({ q, word: Number(word) }))).toEqual(golden);
  });
});

describe("saveQuantized", () => {
  it.each([
    ["llama", { num_key_value_heads: 4, attention_bias: true }],
    ["qwen2", {}],
    ["qwen3", { head_dim: 16 }],
    ["internlm2", { bias: true }],
    ["mistral", { tie_word_embeddings: true }],
  ])("gives the same integers and scales back when %s is loaded again", async (type, extra) => {
    const dense = model(type, extra);
    const folder = join(root, type);
    const made = await quantize(dense, { groupSize: 32, calibration });
    const saved = await saveQuantized(made, folder);
    expect(saved.denseInFile).toEqual([]);
    expect(config(folder)).toMatchObject({
      torch_dtype: "float16",
      quantization_config: {
        quant_method: "awq",
        version: "gemm",
        bits: 4,
        group_size: 32,
        zero_point: true,
        modules_to_not_convert: [type === "internlm2" ? "output" : "lm_head"],
      },
    });
    const loaded = await loadModel(folder, { dtype: "f32" });
    expect(kinds(loaded)).toEqual(kinds(made));
    expect(codes(loaded)).toEqual(codes(made));
    // f16 norms, embedding and biases are all that differs.
    const ids = calibration[0]!;
    const [a, b] = [made, loaded].map((m) => m.logits(ids).dataSync() as Float32Array) as [Float32Array, Float32Array];
    a.forEach((value, i) => expect(Math.abs(value - b[i]!)).toBeLessThan(0.02));
    // And written again it is the same file.
    const again = await loaded.save(`${folder}-again`);
    expect(again.denseInFile).toEqual([]);
    expect(readFileSync(join(`${folder}-again`, "model.safetensors"))).toEqual(
      readFileSync(join(folder, "model.safetensors")),
    );
    for (const m of [dense, made, loaded]) m.dispose();
  });

  it("stores InternLM2's query, key and value as the one tensor that its readers look for", async () => {
    const dense = model("internlm2");
    const folder = join(root, "wqkv");
    const made = await quantize(dense, { method: "rtn", groupSize: 64 });
    await saveQuantized(made, folder);
    const names = [...openSafetensors(folder).tensors.keys()];
    expect(names).toContain("model.layers.0.attention.wqkv.qweight");
    expect(names.some((name) => name.includes("q_proj"))).toBe(false);
    for (const m of [dense, made]) m.dispose();
  });

  it("writes what the layout cannot hold dense, lists it and says why", async () => {
    // 20 of 64 in features make a tail at down; k and v have 12 rows, not a multiple of 8, and take q with them.
    const dense = model("llama", {
      intermediate_size: 84,
      num_attention_heads: 15,
      num_key_value_heads: 3,
      head_dim: 4,
    });
    const folder = join(root, "tails");
    const made = await quantize(dense, { method: "rtn", groupSize: 32, headBits: 8 });
    expect(made.decoder.linears().every((l) => l.storage.kind !== "dense")).toBe(true);
    const { denseInFile } = await saveQuantized(made, folder);
    const layer = (i: number): string[] => [
      `model.layers.${i}.self_attn.q_proj`,
      `model.layers.${i}.self_attn.k_proj`,
      `model.layers.${i}.self_attn.v_proj`,
      `model.layers.${i}.self_attn.o_proj`,
      `model.layers.${i}.mlp.gate_proj`,
      `model.layers.${i}.mlp.up_proj`,
      `model.layers.${i}.mlp.down_proj`,
    ];
    const expected = [...layer(0), ...layer(1), "lm_head"];
    expect(denseInFile.map((d) => d.name)).toEqual(expected);
    const reason = Object.fromEntries(denseInFile.map((d) => [d.name.split(".").slice(3).join("."), d.reason]));
    expect(reason).toMatchObject({
      "self_attn.k_proj": expect.stringContaining("12 out features are not a multiple of 8"),
      "self_attn.o_proj": expect.stringContaining("60 in features are not a multiple of the group size 32"),
      "mlp.gate_proj": expect.stringContaining("84 out features"),
      "mlp.down_proj": expect.stringContaining("84 in features"),
    });
    expect(
      (config(folder)["quantization_config"] as { modules_to_not_convert: string[] }).modules_to_not_convert,
    ).toEqual(expected);
    const loaded = await loadModel(folder, { dtype: "f32" });
    expect(loaded.decoder.linears().every((l) => l.storage.kind === "dense")).toBe(true);
    const weight = (l: Linear): Float32Array => l.dequantize("f32").dataSync() as Float32Array;
    loaded.decoder.linears().forEach((l, i) => {
      const memory = weight(made.decoder.linears()[i]!);
      weight(l).forEach((value, at) =>
        expect(Math.abs(value - memory[at]!)).toBeLessThanOrEqual(Math.abs(memory[at]!) * 2 ** -11 + 2 ** -25),
      );
    });
    for (const m of [dense, made, loaded]) m.dispose();
  });

  it("keeps linears together that readers fuse: one of gate and up dense makes both dense", async () => {
    const dense = tinyModel({ modelType: "llama", hidden: 64, layers: 1 });
    const folder = join(root, "fused");
    const made = await quantize(dense, { method: "rtn", groupSize: 32, modulesToNotConvert: ["gate_proj"] });
    const { denseInFile } = await saveQuantized(made, folder);
    expect(denseInFile).toEqual([
      {
        name: "model.layers.0.mlp.up_proj",
        reason: expect.stringContaining("read as one with model.layers.0.mlp.gate_proj"),
      },
    ]);
    expect(config(folder)).toMatchObject({
      quantization_config: {
        modules_to_not_convert: ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "lm_head"],
      },
    });
    const loaded = await loadModel(folder);
    expect(kinds(loaded)).toMatchObject({
      "model.layers.0.mlp.up_proj": "dense",
      "model.layers.0.mlp.down_proj": "w4",
    });
    for (const m of [dense, made, loaded]) m.dispose();
  });

  it("leaves a tied 8-bit head out of the folder and says so", async () => {
    const dense = tinyModel({ hidden: 64, layers: 1, tied: true });
    const made = await quantize(dense, { method: "rtn", groupSize: 32, headBits: 8 });
    const folder = join(root, "tied");
    const { denseInFile } = await saveQuantized(made, folder);
    expect(denseInFile).toEqual([{ name: "lm_head", reason: expect.stringContaining("tied to model.embed_tokens") }]);
    const loaded = await loadModel(folder);
    expect(loaded.decoder.head).toBeNull();
    for (const m of [dense, made, loaded]) m.dispose();
  });

  it("refuses dense models and other dtypes, and a dense model drops a stale quantization_config", async () => {
    const dense = tinyModel({ hidden: 64, layers: 1 });
    await expect(saveQuantized(dense, join(root, "none"))).rejects.toThrow(/expected a model with 4-bit linears/);
    const made = await quantize(dense, { method: "rtn", groupSize: 32 });
    await expect(saveQuantized(made, join(root, "none"), { dtype: "bf16" })).rejects.toThrow(
      /an AWQ folder is f16, got "bf16"/,
    );
    const folder = join(root, "stale");
    await saveQuantized(made, folder);
    const loaded = await loadModel(folder);
    const opened = loaded.mapLinears((l) => l.with({ storage: { kind: "dense", weight: l.dequantize("f16").keep() } }));
    await opened.save(`${folder}-dense`);
    expect(config(`${folder}-dense`)["quantization_config"]).toBeUndefined();
    (await loadModel(`${folder}-dense`)).dispose();
    for (const m of [dense, made, loaded]) m.dispose();
  });

  it.skipIf(!numpy).each(["llama", "internlm2"])("gives NumPy the weights that %s computes with here", async (type) => {
    const dense = model(type);
    const folder = join(root, `numpy-${type}`);
    const made = await quantize(dense, { groupSize: 32, calibration });
    await saveQuantized(made, folder);
    execFileSync("python3", [script, folder, join(folder, "weights.json")]);
    const unpacked = JSON.parse(readFileSync(join(folder, "weights.json"), "utf8")) as Record<
      string,
      { shape: number[]; data: number[] }
    >;
    let compared = 0;
    const fused = new Map(
      made.spec.layers
        ? (made.definition.fused?.(made.spec, 0) ?? []).flatMap((f) =>
            f.parts.map((p) => [p.linear, { name: f.name, rows: p.rows }] as const),
          )
        : [],
    );
    for (const l of made.decoder.blocks[0]!.linears()) {
      const part = fused.get(l.name);
      const { data, shape } = unpacked[`${part?.name ?? l.name}.weight`]!;
      expect(shape[1]).toBe(l.inFeatures);
      const ours = l.dequantize("f32").dataSync() as Float32Array;
      for (let n = 0; n < l.outFeatures; n++) {
        const row = part ? part.rows[n]! : n;
        for (let k = 0; k < l.inFeatures; k++)
          if (data[row * l.inFeatures + k] !== ours[n * l.inFeatures + k])
            throw new Error(
              `${l.name}[${n}, ${k}]: ${ours[n * l.inFeatures + k]} here, ${data[row * l.inFeatures + k]} in NumPy`,
            );
      }
      compared++;
    }
    expect(compared).toBe(7);
    for (const m of [dense, made]) m.dispose();
  });
});
