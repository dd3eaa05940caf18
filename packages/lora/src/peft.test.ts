import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { backward, createAdamW, linearCrossEntropy, openSafetensors, scope, tensor, writeSafetensors } from "@llm/core";
import type { CausalLM, TokenBatch } from "@llm/models";
import { describe, expect, it } from "vitest";
import {
  adapterNames,
  adapterParameters,
  applyLora,
  loadLora,
  mergeLora,
  saveLora,
  setTrainableAdapters,
} from "./index.js";
import {
  fixtures,
  largestDifference,
  logitsOf,
  oracleModel,
  randomModel,
  scratchFolder,
} from "./test-models.test-support.js";

// What PEFT computes with the same folders; tools/oracle/training.py wrote it.
interface Batch extends Record<Exclude<keyof TokenBatch, "lossWeights_T">, number[]> {
  lossWeights_T: number[];
}
const { ids, losses, norms, batches, settings } = JSON.parse(readFileSync(`${fixtures}answers.json`, "utf8")) as {
  ids: number[];
  losses: number[];
  norms: number[];
  batches: Batch[];
  settings: { lr: number; betas: [number, number]; eps: number; weightDecay: number; maxGradNorm: number };
};
const answer = (name: string): Float32Array => {
  const handle = openSafetensors(`${fixtures}answers.safetensors`);
  const values = new Float32Array(handle.read(name).buffer);
  handle.close();
  return values;
};

/** Loss sum and weight sum of a packed batch; the gradient is added. */
function lossAndGradient(model: CausalLM, b: Batch): { loss: number; weightSum: number } {
  const weightSum = b.labels_T.reduce((n, label, i) => (label === -100 ? n : n + b.lossWeights_T[i]!), 0);
  const loss = scope(() => {
    const hidden = model.hidden({
      ids_T: Int32Array.from(b.ids_T),
      positions_T: Int32Array.from(b.positions_T),
      cuSeqlens_B1: Int32Array.from(b.cuSeqlens_B1),
    });
    const { loss: sum } = linearCrossEntropy(
      hidden,
      model.decoder.headFor(),
      tensor(Int32Array.from(b.labels_T)),
      tensor(Float32Array.from(b.lossWeights_T)),
    );
    const value = sum.itemSync();
    backward(sum);
    return value;
  });
  return { loss: loss / weightSum, weightSum };
}

describe("folders that PEFT wrote", () => {
  it.each([
    ["peft-trained", "qwen2"],
    ["peft-patterns", "qwen2"],
    ["peft-internlm2", "internlm2-biased"],
  ])("%s gives PEFT's logits within 1e-4, beside the base and merged", async (name, base) => {
    const model = await loadLora(await oracleModel(base), `${fixtures}${name}`);
    expect(largestDifference(logitsOf(model, ids), answer(name))).toBeLessThan(1e-4);
    const merged = mergeLora(model);
    expect(largestDifference(logitsOf(merged, ids), answer(name))).toBeLessThan(1e-4);
    expect(adapterNames(merged)).toEqual([]);
    model.dispose();
  });

  it.each([
    ["peft-trained", "qwen2"],
    ["peft-internlm2", "internlm2-biased"],
  ])("%s written again holds the same tensors, bit for bit", async (name, base) => {
    const model = await loadLora(await oracleModel(base), `${fixtures}${name}`);
    const folder = scratchFolder();
    await saveLora(model, folder);
    const [before, after] = [
      openSafetensors(join(`${fixtures}${name}`, "adapter_model.safetensors")),
      openSafetensors(join(folder, "adapter_model.safetensors")),
    ];
    expect([...after.tensors.keys()].sort()).toEqual([...before.tensors.keys()].sort());
    for (const key of before.tensors.keys())
      expect(Buffer.from(after.read(key)).equals(Buffer.from(before.read(key))), key).toBe(true);
    expect(after.metadata).toEqual({ format: "pt" });
    before.close();
    after.close();
  });

  it("30 optimizer steps follow PEFT's loss curve within 1e-4", async () => {
    const model = await loadLora(await oracleModel("qwen2"), `${fixtures}peft-initial`, { trainable: true });
    const { maxGradNorm, ...adamw } = settings;
    const optimizer = createAdamW(adapterParameters(model), adamw);
    losses.forEach((expected, step) => {
      const { loss, weightSum } = lossAndGradient(model, batches[step % batches.length]!);
      const norm = scope(() => optimizer.step({ gradScale: 1 / weightSum, maxGradNorm }).itemSync());
      optimizer.zeroGrad();
      expect(Math.abs(loss / expected - 1), `loss of step ${step}`).toBeLessThan(1e-4);
      expect(Math.abs(norm / weightSum / norms[step]! - 1), `norm of step ${step}`).toBeLessThan(1e-3);
    });
    expect(largestDifference(logitsOf(model, ids), answer("peft-trained"))).toBeLessThan(2e-3);
  });
});

describe("saved folders", () => {
  it("load again bit for bit, with every field of the config that PEFT reads", async () => {
    const base = await oracleModel("qwen2");
    const model = applyLora(base, {
      rank: 3,
      alpha: 5,
      rsLora: true,
      dropout: 0.1,
      targets: ["q_proj", "v_proj", "layers.1.mlp.down_proj"],
      seed: 4,
    });
    for (const { name, tensor: t } of adapterParameters(model))
      if (name.includes("lora_B")) t.write(Float32Array.from({ length: t.size }, (_, i) => Math.sin(i + name.length)));
    const folder = scratchFolder();
    await saveLora(model, folder, { baseModel: "org/base" });
    const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8")) as Record<string, unknown>;
    expect(config).toMatchObject({
      peft_type: "LORA",
      task_type: "CAUSAL_LM",
      r: 3,
      lora_alpha: 5,
      lora_dropout: 0.1,
      use_rslora: true,
      bias: "none",
      base_model_name_or_path: "org/base",
      fan_in_fan_out: false,
      inference_mode: true,
      target_modules: ["model.layers.1.mlp.down_proj", "q_proj", "v_proj"],
      rank_pattern: {},
      alpha_pattern: {},
    });
    const handle = openSafetensors(join(folder, "adapter_model.safetensors"));
    expect([...handle.tensors.keys()].sort()).toEqual(
      [
        "0.self_attn.q_proj",
        "0.self_attn.v_proj",
        "1.mlp.down_proj",
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
      ].flatMap((m) => ["A", "B"].map((s) => `base_model.model.model.layers.${m}.lora_${s}.weight`)),
    );
    expect(handle.tensors.get("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight")).toMatchObject({
      dtype: "F32",
      shape: [3, 53],
    });
    handle.close();
    const again = await loadLora(base, folder, { name: "again" });
    expect(logitsOf(again)).toEqual(logitsOf(model));
    expect(logitsOf(again)).not.toEqual(logitsOf(base));
  });

  it.each(["internlm2", "qwen"])("of %s: parts with an A each are joined exactly by stacking ranks", async (name) => {
    const base = await randomModel(name);
    const model = applyLora(base, { rank: 2, targets: ["q_proj", "v_proj"] });
    for (const { name: n, tensor: t } of adapterParameters(model))
      if (n.includes("lora_B")) t.write(Float32Array.from({ length: t.size }, (_, i) => 0.1 * Math.cos(i * n.length)));
    const folder = scratchFolder();
    await saveLora(model, folder);
    const again = await loadLora(base, folder);
    expect(largestDifference(logitsOf(again), logitsOf(base))).toBeGreaterThan(1e-2);
    expect(largestDifference(logitsOf(again), logitsOf(model))).toBeLessThan(1e-5);
  });

  it("of two adapters: the one that is named, else an error that lists them", async () => {
    const model = applyLora(applyLora(await randomModel("llama"), { name: "a" }), { name: "b", rank: 2 });
    const folder = scratchFolder();
    await expect(saveLora(model, folder)).rejects.toThrow(/"a", "b"/);
    await saveLora(model, folder, { adapter: "b" });
    expect(JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"))).toMatchObject({
      r: 2,
      lora_alpha: 4,
    });
    await expect(saveLora(await randomModel("llama"), folder)).rejects.toThrow(/carries no adapter/);
  });
});

describe("folders with faults", () => {
  const entries = async (
    change: (config: Record<string, unknown>, tensors: Map<string, { shape: number[]; bytes: Uint8Array }>) => void,
  ): Promise<string> => {
    const folder = scratchFolder();
    const config = JSON.parse(readFileSync(`${fixtures}peft-trained/adapter_config.json`, "utf8")) as Record<
      string,
      unknown
    >;
    const handle = openSafetensors(`${fixtures}peft-trained/adapter_model.safetensors`);
    const tensors = new Map(
      [...handle.tensors].map(([name, t]) => [name, { shape: [...t.shape], bytes: handle.read(name) as Uint8Array }]),
    );
    handle.close();
    change(config, tensors);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(config));
    await writeSafetensors(
      folder,
      [...tensors].map(([name, t]) => ({
        name,
        dtype: "f32" as const,
        shape: t.shape,
        byteLength: t.bytes.byteLength,
        bytes: () => t.bytes,
      })),
      { baseName: "adapter_model" },
    );
    return folder;
  };
  const q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

  it.each<[string, RegExp, Parameters<typeof entries>[0]]>([
    ["a missing tensor", /lacks "base_model.*q_proj.lora_A.weight"/, (_, t) => void t.delete(q)],
    [
      "a tensor of a module that is not targeted",
      /belong to no module.*o_proj/,
      (c) => void (c["target_modules"] = (c["target_modules"] as string[]).filter((n) => !n.endsWith("o_proj"))),
    ],
    [
      "a tensor too many",
      /1 tensors .* belong to no module.*layers\.7/,
      (_, t) => void t.set(q.replace("layers.0", "layers.7"), t.get(q)!),
    ],
    [
      "keys without the prefix",
      /keys start with "base_model.model."/,
      (_, t) => [...t].forEach(([k, v]) => (t.delete(k), t.set(k.replace("base_model.model.", ""), v))),
    ],
    ["a rank that the tensors do not have", /must be \[5, 42\], got \[4, 42\]/, (c) => void (c["r"] = 5)],
    ["targets that match nothing", /match no linear/, (c) => void (c["target_modules"] = ["c_fc"])],
    ["DoRA", /use_dora = true/, (c) => void (c["use_dora"] = true)],
    ["saved modules", /modules_to_save = \["lm_head"\]/, (c) => void (c["modules_to_save"] = ["lm_head"])],
    ["biases", /bias = "all"/, (c) => void (c["bias"] = "all")],
    ["layer replication", /layer_replication/, (c) => void (c["layer_replication"] = [[0, 2]])],
    ["trainable tokens", /trainable_token_indices/, (c) => void (c["trainable_token_indices"] = [1, 2])],
    [
      "an initialization that changed the base",
      /init_lora_weights = "pissa"/,
      (c) => void (c["init_lora_weights"] = "pissa"),
    ],
    ["a key of a later PEFT that is set", /new_thing = 1/, (c) => void (c["new_thing"] = 1)],
    ["another method", /peft_type "LOHA"/, (c) => void (c["peft_type"] = "LOHA")],
    ["a rank of the wrong type", /r: /, (c) => void (c["r"] = "4")],
    [
      "DoRA magnitudes",
      /lora_magnitude_vector/,
      (_, t) =>
        void t.set(q.replace("lora_A.weight", "lora_magnitude_vector"), { shape: [1], bytes: new Uint8Array(4) }),
    ],
  ])("%s is an error that says so", async (_, message, change) => {
    const base = await oracleModel("qwen2");
    await expect(loadLora(base, await entries(change))).rejects.toThrow(message);
    expect(adapterNames(base)).toEqual([]);
  });

  it("an absent folder is an error that names it", async () => {
    const folder = join(scratchFolder(), "nothing");
    expect(existsSync(folder)).toBe(false);
    await expect(loadLora(await randomModel("llama"), folder)).rejects.toThrow(folder);
  });

  it("a head adapter loads for use and cannot be trained", async () => {
    const base = await randomModel("llama");
    const folder = scratchFolder();
    const config = JSON.parse(readFileSync(`${fixtures}peft-trained/adapter_config.json`, "utf8")) as Record<
      string,
      unknown
    >;
    writeFileSync(
      join(folder, "adapter_config.json"),
      JSON.stringify({ ...config, r: 1, target_modules: ["lm_head"] }),
    );
    const make = (rows: number, columns: number): Uint8Array =>
      new Uint8Array(Float32Array.from({ length: rows * columns }, (_, i) => 0.2 * Math.sin(i)).buffer);
    await writeSafetensors(
      folder,
      [
        {
          name: "base_model.model.lm_head.lora_A.weight",
          dtype: "f32",
          shape: [1, 48],
          byteLength: 192,
          bytes: () => make(1, 48),
        },
        {
          name: "base_model.model.lm_head.lora_B.weight",
          dtype: "f32",
          shape: [97, 1],
          byteLength: 388,
          bytes: () => make(97, 1),
        },
      ],
      { baseName: "adapter_model" },
    );
    await expect(loadLora(base, folder, { trainable: true })).rejects.toThrow(/output head/);
    const model = await loadLora(base, folder);
    expect(largestDifference(logitsOf(model), logitsOf(base))).toBeGreaterThan(0.1);
    expect(largestDifference(logitsOf(model), logitsOf(mergeLora(model)))).toBeLessThan(1e-5);
    expect(() => setTrainableAdapters(model, ["default"])).toThrow(/output head/);
  });
});
