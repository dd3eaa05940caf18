import { type Linear, native, noGrad, scope, type Tensor, tensor, type W4Storage } from "@llm/core";
import type { CausalLM } from "@llm/models";
import { byteTokenizer, packIds, randomDocuments, tinyModel } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { calibrationBlocks } from "./calibration.js";
import { linearRoles } from "./fold.js";
import { comparePerplexity, perplexityOf, quantize, type QuantizeProgress } from "./index.js";
import { clampGroups, fakeQuantize, roundToNearest } from "./rounding.js";
import { duoScales, gridRatios, meanGroupWeight } from "./scales.js";

const tokenizer = byteTokenizer();
const calibration = randomDocuments([48, 64, 17, 64], { vocabSize: 259, seed: 5 });

const w4 = (l: Linear): W4Storage => {
  if (l.storage.kind !== "w4") throw new Error(`${l.name} is ${l.storage.kind}`);
  return l.storage;
};

/** Scales rows of a weight in place. */
function scaleRows(l: Linear, rows: readonly number[], factor: number): void {
  const { weight } = l.storage as { weight: Tensor };
  const data = weight.dataSync() as Float32Array;
  for (const row of rows) for (let k = 0; k < l.inFeatures; k++) data[row * l.inFeatures + k]! *= factor;
  weight.write(data);
}

describe("rounding", () => {
  it("gives the scale, zero and codes worked out by hand", () => {
    const w = tensor(Float32Array.of(-0.7, -0.2, 0.05, 0.29, 0.8, 1.1, -0.4, 0), [1, 8]);
    const { q, scales, zeros } = roundToNearest(w, { group: 8, symmetric: false });
    expect(scales.dataSync()[0]).toBeCloseTo(0.12, 4);
    expect(zeros.dataSync()[0]).toBe(6);
    expect([...(q.dataSync() as Uint8Array)].flatMap((b) => [b & 15, b >> 4])).toEqual([0, 4, 6, 8, 13, 15, 3, 6]);
  });

  it("rounds ties to even", () => {
    const w = tensor(Float32Array.of(0, 2.5, 3.5, 0.5, 1.5, 14.5, 15, 0), [1, 8]);
    const { q } = roundToNearest(w, { group: 8, symmetric: false });
    expect([...(q.dataSync() as Uint8Array)].flatMap((b) => [b & 15, b >> 4])).toEqual([0, 2, 4, 0, 2, 14, 15, 0]);
  });

  it("keeps scales that f16 can hold, so that a folder holds the same weights", () => {
    const w = tensor(
      Float32Array.from({ length: 96 }, (_, i) => Math.sin(i * 1.37) * 0.031),
      [2, 48],
    );
    const { scales } = roundToNearest(w, { group: 32, symmetric: false });
    const again = native.cast(native.cast(scales, 1), 0).dataSync();
    expect([...again]).toEqual([...scales.dataSync()]);
    expect(scales.shape).toEqual([2, 2]);
  });

  it("clamps only the groups that have a limit, and counts those it cut", () => {
    const w = tensor(Float32Array.of(1, -3, 2, 0.5, 4, -1, 1, -5), [2, 4]);
    const { clamped, cut } = clampGroups(w, Float32Array.of(1.5, Infinity, 9, 2), 2);
    expect([...clamped.dataSync()].map(Number)).toEqual([1, -1.5, 2, 0.5, 4, -1, 1, -2]);
    expect(cut).toBe(2);
  });
});

describe("scales", () => {
  it("follow the formula: x^r / (w^(1-r) + 1e-4), normalised by the extremes", () => {
    const s = duoScales(Float64Array.of(4, 1, 0.25), Float64Array.of(0.5, 0.25, 0.75), 0.5);
    const raw = [2 / (Math.sqrt(0.5) + 1e-4), 1 / (0.5 + 1e-4), 0.5 / (Math.sqrt(0.75) + 1e-4)];
    const middle = Math.sqrt(Math.max(...raw) * Math.min(...raw));
    raw.forEach((value, i) => expect(s[i]).toBeCloseTo(value / middle, 6));
  });

  it("leave channels alone that were never active", () => {
    const s = duoScales(Float64Array.of(0, 4, 1), Float64Array.of(0.5, 0.5, 0.5), 1);
    expect([...s]).toEqual([1, 2, 0.5]);
  });

  it("measure weights against the largest of their group, the shorter last group too", () => {
    const mean = meanGroupWeight([{ data: Float32Array.of(1, 2, 4, -2, 1, 8), rows: 2 }], 3, 2);
    expect(mean[0]).toBeCloseTo((1 / 2 + 2 / 2) / 2, 5);
    expect(mean[1]).toBeCloseTo((2 / 2 + 1 / 2) / 2, 5);
    expect(mean[2]).toBeCloseTo(1, 5);
  });

  it("are tried at both ends of the grid", () => {
    const ratios = gridRatios(20);
    expect(ratios).toHaveLength(19);
    expect([ratios[0], ratios[18]]).toEqual([0, 1]);
  });
});

describe("calibration blocks", () => {
  it("cut long documents, pack short ones without letting them see each other, and stop at maxBlocks", () => {
    const docs = [Int32Array.from({ length: 10 }, (_, i) => i), Int32Array.of(20, 21), Int32Array.of(30, 31, 32)];
    const blocks = calibrationBlocks(docs, 4, 9, 100);
    expect(blocks.map((b) => [...b.ids_T])).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
      [8, 9, 20, 21],
      [30, 31, 32],
    ]);
    expect([...blocks[2]!.cuSeqlens_B1]).toEqual([0, 2, 4]);
    expect([...blocks[2]!.positions_T]).toEqual([0, 1, 0, 1]);
    expect(calibrationBlocks(docs, 4, 2, 100)).toEqual(blocks.slice(0, 2));
  });

  it("are the same from packed batches and from a data set", () => {
    const docs = randomDocuments([5, 9, 3], { vocabSize: 50, seed: 2 });
    const batch = packIds(docs);
    const expected = calibrationBlocks(docs, 6, 9, 50);
    expect(calibrationBlocks([batch], 6, 9, 50)).toEqual(expected);
    expect(calibrationBlocks({ batches: () => [batch] }, 6, 9, 50)).toEqual(expected);
  });

  it("refuse ids outside the vocabulary and data without tokens", () => {
    expect(() => calibrationBlocks([Int32Array.of(1, 50)], 6, 9, 50)).toThrow(/\[0, 50\), got 50/);
    expect(() => calibrationBlocks([], 6, 9, 50)).toThrow(/at least one token/);
    expect(() => calibrationBlocks([{}] as never, 6, 9, 50)).toThrow(/Int32Array ids or packed batches/);
  });
});

describe("quantize", () => {
  it.each(["llama", "qwen2", "qwen3"] as const)(
    "finds scales and clips that are never worse than rounding alone, on every linear of %s",
    async (modelType) => {
      const model = tinyModel({ modelType, hidden: 64, std: 0.15 });
      const before = [...model.decoder.namedTensors()].map(([name, t]) => [name, [...(t.bitsSync() as Float32Array)]]);
      const seen: QuantizeProgress[] = [];
      const awq = await quantize(model, { groupSize: 32, calibration, onProgress: (p) => seen.push(p) });
      const { linears } = awq.quantization;
      expect(linears.map((l) => l.name)).toEqual(
        model.decoder.blocks.flatMap((b) => linearRoles(b).map(([, l]) => l.name)),
      );
      expect(seen).toEqual(linears.map((l, i) => ({ layer: Math.floor(i / 7), of: 2, name: l.name })));
      for (const l of linears) {
        expect(l.errorRtn).toBeGreaterThan(0);
        expect(l.errorAwq).toBeLessThanOrEqual(l.errorRtn!);
      }
      // The search found something, and clips stay off q and k.
      expect(linears.some((l) => l.ratio !== null)).toBe(true);
      expect(linears.some((l) => l.clipped > 0)).toBe(true);
      expect(linears.filter((l) => /[qk]_proj$/.test(l.name)).every((l) => l.clipped === 0)).toBe(true);
      expect(awq.quantization.calibration).toEqual({ tokens: 193, blocks: 1 });
      expect(awq.quantization.bytesAfter).toBeLessThan(awq.quantization.bytesBefore);
      expect([...model.decoder.namedTensors()].map(([name, t]) => [name, [...(t.bitsSync() as Float32Array)]])).toEqual(
        before,
      );
      model.dispose();
      awq.dispose();
    },
  );

  it.each([
    [["q_proj", "k_proj", "v_proj"], "attention"],
    [["o_proj"], "attention"],
    [["gate_proj", "up_proj"], "mlp"],
    [["down_proj"], "mlp"],
  ] as const)("reports the error that the stored weights of %s really make in the %s", async (names, inspected) => {
    const model = tinyModel({ hidden: 64, std: 0.15, layers: 1 });
    const all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    const others = all.filter((name) => !(names as readonly string[]).includes(name));
    const block = calibrationBlocks(calibration, 512, 1, 259)[0]!;
    const outputs = (m: CausalLM): { attention: Tensor; mlp: Tensor } => {
      const [b] = m.decoder.blocks as [(typeof m.decoder.blocks)[0]];
      const inputs = {
        ids_T: tensor(block.ids_T),
        positions_T: tensor(block.positions_T),
        cuSeqlens_B1: tensor(block.cuSeqlens_B1),
        length: 64,
      };
      const x = native.embedding(inputs.ids_T, m.decoder.embed.weight);
      const attention = b.o.forward(
        b.attend(native.rmsNorm(x, b.inputNorm.weight, 1e-6)[0], inputs, m.decoder.rotary(64)),
      );
      return {
        attention,
        mlp: b.down.forward(
          native.swiglu(b.gateUp.forward(native.addRmsNorm(attention, x, b.postNorm.weight, 1e-6)[0])),
        ),
      };
    };
    for (const method of ["awq", "rtn"] as const) {
      const made = await quantize(model, {
        method,
        groupSize: 32,
        modulesToNotConvert: others,
        ...(method === "awq" ? { calibration } : {}),
      });
      const awq = await quantize(model, { groupSize: 32, modulesToNotConvert: others, calibration });
      const reported = awq.quantization.linears
        .filter((l) => l.stored === "w4")
        .map((l) => (method === "awq" ? l.errorAwq! : l.errorRtn!));
      expect(reported).toHaveLength(names.length);
      const error = noGrad(() =>
        scope(() => native.mse(outputs(made)[inspected], outputs(model)[inspected]).itemSync()),
      );
      for (const value of reported) expect(value / error).toBeCloseTo(1, 2);
      for (const m of [made, awq]) m.dispose();
    }
    model.dispose();
  });

  it("halves the error of rounding where 1 % of the input channels are 20 times larger (w4, groups of 128)", async () => {
    const model = tinyModel({ hidden: 256, intermediate: 512, heads: 4, kvHeads: 2, layers: 1, std: 0.05 });
    const block = model.decoder.blocks[0]!;
    for (const { weight } of [block.inputNorm, block.postNorm])
      weight.write(Float32Array.from({ length: 256 }, (_, c) => ([17, 101, 230].includes(c) ? 20 : 1)));
    scaleRows(block.gateUp.linears[1]!, [5, 133, 260, 389, 500], 20);
    scaleRows(block.qkv.linears[2]!, [40], 20);
    const awq = await quantize(model, { groupSize: 128, calibration });
    for (const { name, errorAwq, errorRtn } of awq.quantization.linears)
      expect(errorAwq! / errorRtn!, name).toBeLessThanOrEqual(0.5);
    model.dispose();
    awq.dispose();
  });

  it("computes what its dequantized weights compute", async () => {
    const model = tinyModel({ hidden: 64, std: 0.15 });
    const awq = await quantize(model, { groupSize: 32, calibration });
    const dense = awq.mapLinears((l) => l.with({ storage: { kind: "dense", weight: l.dequantize("f32").keep() } }));
    const ids = calibration[0]!;
    const [a, b] = [awq.logits(ids).dataSync() as Float32Array, dense.logits(ids).dataSync() as Float32Array];
    a.forEach((value, i) => expect(Math.abs(value - b[i]!)).toBeLessThan(1e-4));
    // The fast path rounds activations as well: close, not equal.
    const fast = await quantize(model, { groupSize: 32, calibration, compute: "int8" });
    expect(w4(fast.decoder.linears()[0]!).q.dataSync()).toEqual(w4(awq.decoder.linears()[0]!).q.dataSync());
    const c = fast.logits(ids).dataSync() as Float32Array;
    const [error, size] = a.reduce(([e, s], value, i) => [e + (value - c[i]!) ** 2, s + value ** 2], [0, 0]) as [
      number,
      number,
    ];
    expect(Math.sqrt(error / size)).toBeLessThan(0.05);
    expect(error).toBeGreaterThan(0);
    for (const m of [model, awq, fast]) m.dispose();
  });

  it("gives the same bits every time", async () => {
    const model = tinyModel({ hidden: 32, std: 0.15 });
    const [a, b] = [
      await quantize(model, { groupSize: 32, calibration }),
      await quantize(model, { groupSize: 32, calibration }),
    ];
    expect([...a.decoder.namedTensors()].map(([n, t]) => [n, t.bitsSync()])).toEqual(
      [...b.decoder.namedTensors()].map(([n, t]) => [n, t.bitsSync()]),
    );
    expect(a.quantization).toEqual(b.quantization);
    for (const m of [model, a, b]) m.dispose();
  });

  it("rounds to nearest without calibration, a shorter last group included", async () => {
    const model = tinyModel({ hidden: 36, intermediate: 50, heads: 3, kvHeads: 1, std: 0.2 });
    const rtn = await quantize(model, { method: "rtn", groupSize: 32 });
    for (const [i, l] of rtn.decoder.linears().entries()) {
      expect(w4(l).scales.shape).toEqual([l.outFeatures, 2]);
      const expected = fakeQuantize((model.decoder.linears()[i]!.storage as { weight: Tensor }).weight, {
        group: 32,
        symmetric: false,
      });
      expect(l.dequantize("f32").dataSync()).toEqual(expected.dataSync());
    }
    expect(rtn.quantization.linears.every((l) => l.ratio === null && l.errorRtn === undefined && l.clipped === 0)).toBe(
      true,
    );
    for (const m of [model, rtn]) m.dispose();
  });

  it("uses zeros of 8 when symmetric, and still searches", async () => {
    const model = tinyModel({ hidden: 32, std: 0.15, layers: 1 });
    const awq = await quantize(model, { groupSize: 32, symmetric: true, calibration });
    for (const l of awq.decoder.linears())
      expect((w4(l).zeros.dataSync() as Uint8Array).every((z) => z === 8)).toBe(true);
    expect(awq.quantization.linears.every((l) => l.errorAwq! <= l.errorRtn!)).toBe(true);
    for (const m of [model, awq]) m.dispose();
  });

  it("leaves listed linears dense, whose folded weights still belong to the rest", async () => {
    const model = tinyModel({ hidden: 64, std: 0.15, layers: 2 });
    const awq = await quantize(model, {
      groupSize: 32,
      calibration,
      modulesToNotConvert: ["v_proj", "layers.1.mlp.up_proj"],
    });
    const kinds = awq.decoder.linears().map((l) => [l.name, l.storage.kind]);
    for (const [name, kind] of kinds)
      expect(kind, name).toBe(name!.includes("v_proj") || name!.includes("layers.1.mlp.up_proj") ? "dense" : "w4");
    expect(awq.quantization.linears.find((l) => l.name.includes("v_proj"))).toMatchObject({
      stored: "dense",
      group: 0,
      errorRtn: undefined,
    });
    const blocks = calibration.map((ids) => ids.slice(0, 40)).filter((ids) => ids.length > 2);
    const { nll } = comparePerplexity(await perplexityOf(model, blocks), await perplexityOf(awq, blocks));
    expect(Math.abs(nll)).toBeLessThan(0.1);
    for (const m of [model, awq]) m.dispose();
  });

  it("keeps odd widths dense and says why", async () => {
    const model = tinyModel({ hidden: 32, intermediate: 45, layers: 1 });
    const rtn = await quantize(model, { method: "rtn", groupSize: 32 });
    expect(rtn.quantization.linears.filter((l) => l.stored === "dense")).toMatchObject([
      { name: "model.layers.0.mlp.down_proj", reason: expect.stringContaining("45 in features are odd") },
    ]);
    for (const m of [model, rtn]) m.dispose();
  });

  it.each([true, false])("stores the head in 8 bits on request (tied: %s)", async (tied) => {
    const model = tinyModel({ hidden: 64, tied, std: 0.1, layers: 1 });
    const made = await quantize(model, { method: "rtn", groupSize: 32, headBits: 8 });
    expect(made.decoder.head).toMatchObject({ name: "lm_head", storage: { kind: "q8", group: 32 } });
    expect(made.quantization.linears.at(-1)).toMatchObject({ name: "lm_head", stored: "q8" });
    expect(made.decoder.parameterCount).toBe(model.decoder.parameterCount);
    const plain = await quantize(model, { method: "rtn", groupSize: 32 });
    const ids = calibration[0]!;
    const [a, b] = [made, plain].map((m) => m.logits(ids).dataSync() as Float32Array) as [Float32Array, Float32Array];
    const [error, size] = b.reduce(([e, s], value, i) => [e + (value - a[i]!) ** 2, s + value ** 2], [0, 0]) as [
      number,
      number,
    ];
    expect(Math.sqrt(error / size)).toBeLessThan(0.02);
    expect(error).toBeGreaterThan(0);
    for (const m of [model, made, plain]) m.dispose();
  });

  it("outlives the model that it was made from", async () => {
    const model = tinyModel({ hidden: 32, layers: 1 });
    const rtn = await quantize(model, { method: "rtn", groupSize: 32, modulesToNotConvert: ["self_attn"] });
    const expected = [...rtn.logits(calibration[0]!).dataSync()];
    model.dispose();
    expect([...rtn.logits(calibration[0]!).dataSync()]).toEqual(expected);
    rtn.dispose();
  });

  it("works on bf16 models", async () => {
    const model = tinyModel({ hidden: 64, std: 0.15, dtype: "bf16", layers: 1 });
    const awq = await quantize(model, { groupSize: 32, calibration });
    expect(awq.quantization.linears.every((l) => l.errorAwq! <= l.errorRtn!)).toBe(true);
    expect(awq.decoder.blocks[0]!.inputNorm.weight.dtype).toBe("bf16");
    const blocks = [calibration[0]!];
    const { nll } = comparePerplexity(await perplexityOf(model, blocks), await perplexityOf(awq, blocks));
    expect(Math.abs(nll)).toBeLessThan(0.2);
    for (const m of [model, awq]) m.dispose();
  });

  it("refuses what it cannot do, and says what was expected", async () => {
    const model = tinyModel({ hidden: 32, layers: 1 });
    await expect(quantize(model)).rejects.toThrow(/calibration: method "awq" needs blocks/);
    await expect(quantize(model, { method: "rtn", calibration })).rejects.toThrow(/method "rtn" does not use it/);
    await expect(quantize(model, { method: "rtn", groupSize: 48 as never })).rejects.toThrow(/groupSize/);
    await expect(quantize(model, { method: "rtn", groupsize: 32 } as never)).rejects.toThrow(/groupsize/);
    await expect(quantize(model, { method: "rtn", headBits: 8, modulesToNotConvert: ["lm_head"] })).rejects.toThrow(
      /headBits/,
    );
    const rtn = await quantize(model, { method: "rtn", groupSize: 32 });
    await expect(quantize(rtn, { method: "rtn" })).rejects.toThrow(/stored as w4 already/);
    await expect(quantize(model, { calibration, signal: AbortSignal.abort() })).rejects.toThrow(/abort/);
    const weight = (model.decoder.blocks[0]!.o.storage as { weight: Tensor }).weight;
    weight.write(new Float32Array(weight.size).fill(NaN));
    await expect(quantize(model, { method: "rtn", groupSize: 32 })).rejects.toThrow(
      /o_proj.weight: expected finite numbers/,
    );
    await expect(quantize(model, { groupSize: 32, calibration })).rejects.toThrow(
      /o_proj.weight: expected finite numbers/,
    );
    for (const m of [model, rtn]) m.dispose();
  });
});

describe("perplexity", () => {
  it("is the exponential of the mean nll, and differences carry a paired standard error", async () => {
    const before = {
      perplexity: 0,
      nll: 7 / 4,
      tokens: 4,
      blocks: [
        { nll: 3, tokens: 2 },
        { nll: 4, tokens: 2 },
      ],
    };
    const after = {
      perplexity: 1,
      nll: 10 / 4,
      tokens: 4,
      blocks: [
        { nll: 4, tokens: 2 },
        { nll: 6, tokens: 2 },
      ],
    };
    const difference = comparePerplexity(before, after);
    expect(difference.nll).toBeCloseTo(0.75, 12);
    expect(difference.standardError).toBeCloseTo(Math.sqrt(2 * (0.5 ** 2 + 0.5 ** 2)) / 4, 12);
    const model = tinyModel({ layers: 1, tokenizer });
    const ids = Int32Array.of(5, 6, 7);
    const measured = await perplexityOf(model, [ids]);
    const [score] = await model.score(Int32Array.of(5), [Int32Array.of(6, 7)]);
    expect(measured).toMatchObject({ tokens: 2, nll: -score!.logprob / 2, perplexity: Math.exp(-score!.logprob / 2) });
    await expect(perplexityOf(model, [])).rejects.toThrow(/at least one block/);
    await expect(perplexityOf(model, [Int32Array.of(1)])).rejects.toThrow(/at least 2 ids/);
    model.dispose();
  });
});
