import { type Linear, native, type Tensor } from "@llm/core";
import { type CausalLM, createModel } from "@llm/models";
import { byteTokenizer, tinyModel } from "@llm/testing";
import { describe, expect, it } from "vitest";
import { createStudent } from "./index.js";
import { chosenLayers } from "./student.js";

const ids = Int32Array.of(5, 17, 200, 3, 90);
const bits = (t: Tensor): number[] => [...(t.dataSync() as Float32Array)];

describe("createStudent", () => {
  it("makes a smaller model of the same architecture, tokenizer and seed's weights", () => {
    const teacher = tinyModel({ hidden: 32, layers: 4, modelType: "qwen3" });
    const student = createStudent(teacher, {
      layers: 2,
      hiddenSize: 16,
      intermediateSize: 24,
      heads: 2,
      kvHeads: 1,
      headDim: 8,
      seed: 7,
    });
    expect(student.spec).toMatchObject({
      layers: 2,
      hiddenSize: 16,
      intermediateSize: 24,
      heads: 2,
      kvHeads: 1,
      headDim: 8,
      vocabSize: teacher.spec.vocabSize,
      qkNorm: true,
    });
    expect(student.tokenizer).toBe(teacher.tokenizer);
    const again = createStudent(teacher, {
      layers: 2,
      hiddenSize: 16,
      intermediateSize: 24,
      heads: 2,
      kvHeads: 1,
      headDim: 8,
      seed: 7,
    });
    expect(bits(again.logits(ids))).toEqual(bits(student.logits(ids)));
    expect(teacher.config["num_hidden_layers"]).toBe(4);
    for (const m of [teacher, student, again]) m.dispose();
  });

  it("is the teacher itself when all of its layers are copied", () => {
    const teacher = tinyModel({ layers: 3, tied: false, seed: 3 });
    const student = createStudent(teacher, { init: "layers" });
    const expected = bits(teacher.logits(ids));
    teacher.dispose();
    expect(bits(student.logits(ids))).toEqual(expected);
    student.dispose();
  });

  it("copies evenly spaced layers, the first and the last among them", () => {
    expect(chosenLayers(6, 3)).toEqual([0, 3, 5]);
    expect(chosenLayers(4, 2)).toEqual([0, 3]);
    expect(chosenLayers(4, 1)).toEqual([0]);
    const teacher = tinyModel({ layers: 4, modelType: "qwen2" });
    // Biases and norms that differ by layer.
    teacher.decoder
      .trainable()
      .forEach(({ tensor }, i) => tensor.shape.length === 1 && native.fill(tensor, 0.5 + i / 100));
    const student = createStudent(teacher, { layers: 2, init: "layers" });
    const of = (m: typeof teacher, i: number) => {
      const b = m.decoder.blocks[i]!;
      return [
        ...b.linears().flatMap((l: Linear) => l.storageTensors().map(([, t]) => t)),
        ...b.norms().map((n) => n.weight),
      ].map(bits);
    };
    expect(of(student, 0)).toEqual(of(teacher, 0));
    expect(of(student, 1)).toEqual(of(teacher, 3));
    // Its fused buffers are what it trains: they hold the copies too.
    const fused = (m: CausalLM, i: number): Tensor => m.decoder.blocks[i]!.qkv.fused!.storageTensors()[0]![1];
    expect(bits(fused(student, 1))).toEqual(bits(fused(teacher, 3)));
    for (const m of [teacher, student]) m.dispose();
  });

  it("keeps layer_types in step, knows Qwen 1's names, and copies to another dtype", () => {
    const tokenizer = byteTokenizer();
    const config = {
      vocab_size: 259,
      hidden_size: 16,
      num_attention_heads: 2,
      num_hidden_layers: 4,
      intermediate_size: 32,
    };
    const windows = createModel(
      {
        ...config,
        model_type: "qwen2",
        sliding_window: 4,
        use_sliding_window: true,
        layer_types: ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
      },
      tokenizer,
    );
    expect(createStudent(windows, { layers: 2 }).spec.windows).toEqual([0, 4]);
    const qwen = createModel({ ...config, model_type: "qwen", kv_channels: 8 }, tokenizer);
    expect(createStudent(qwen, { layers: 1, intermediateSize: 12, headDim: 4, heads: 4 }).spec).toMatchObject({
      layers: 1,
      intermediateSize: 12,
      headDim: 4,
      heads: 4,
    });
    expect(() => createStudent(qwen, { kvHeads: 1 })).toThrow(/kvHeads/);
    const half = createStudent(qwen, { init: "layers", dtype: "bf16", layers: 2 });
    expect(half.dtype).toBe("bf16");
    expect(half.decoder.blocks[1]!.o.dequantize("f32").dataSync()[0]).toBeCloseTo(
      Number(qwen.decoder.blocks[3]!.o.dequantize("f32").dataSync()[0]),
      3,
    );
  });

  it("refuses to copy layers of other widths, or more of them than there are", () => {
    const teacher = tinyModel({ layers: 2 });
    expect(() => createStudent(teacher, { init: "layers", hiddenSize: 16 })).toThrow(
      /hiddenSize must be the teacher's 32, got 16/,
    );
    expect(() => createStudent(teacher, { init: "layers", layers: 3 })).toThrow(
      /at most the teacher's 2 layers, got 3/,
    );
    expect(() => createStudent(teacher, { layer: 1 } as never)).toThrow(/layer/);
    expect(() => createStudent(teacher, { config: { frobnicate: true } })).toThrow(/frobnicate/);
    teacher.dispose();
  });
});
