import { backward, linearCrossEntropy, native, noGrad, scope, tensor } from "@llm/core";
import { tinyModel } from "@llm/testing";
import { expect, it } from "vitest";
import { adapterParameters, applyLora, quantizeNf4 } from "./index.js";

const ids = Int32Array.from({ length: 24 }, (_, i) => (i * 7) % 50);
const batch = {
  ids_T: ids,
  positions_T: Int32Array.from(ids, (_, i) => i),
  cuSeqlens_B1: Int32Array.of(0, ids.length),
};

/** Largest |a − b| over the largest |b|. */
const distance = (a: Float32Array, b: Float32Array): number => {
  const most = b.reduce((m, x) => Math.max(m, Math.abs(x)), 0);
  return a.reduce((m, x, i) => Math.max(m, Math.abs(x - b[i]!)), 0) / most;
};

it("weights in NF4 stay within half a step of the widest gap; scales in 8 bits add little", () => {
  const model = tinyModel();
  const plain = quantizeNf4(model, { doubleQuantization: false });
  const nested = quantizeNf4(model);
  noGrad(() =>
    scope(() => {
      model.decoder.blocks.forEach((block, b) =>
        block.linears().forEach((linear, i) => {
          const weight = linear.dequantize("f32").dataSync() as Float32Array;
          const [one, two] = [plain, nested].map((m) => {
            const l = m.decoder.blocks[b]!.linears()[i]!;
            expect(l.storage.kind).toBe("nf4");
            return l.dequantize("f32").dataSync() as Float32Array;
          }) as [Float32Array, Float32Array];
          // Half of the gap between the codes -1 and -0.6962.
          expect(distance(one, weight)).toBeLessThanOrEqual(0.152);
          expect(distance(two, one)).toBeLessThan(0.02);
          expect(distance(two, one)).toBeGreaterThan(0);
        }),
      );
    }),
  );
  for (const linear of nested.decoder.blocks[0]!.linears())
    expect(linear.storageBytes).toBeLessThan(linear.outFeatures * linear.inFeatures * 4);
});

it("adapters train on the frozen base: they get gradients, it gets none", () => {
  const model = applyLora(quantizeNf4(tinyModel(), { release: true }), { rank: 4 });
  scope(() => {
    const labels = tensor(Int32Array.from(ids, (_, t) => ids[t + 1] ?? -100));
    backward(linearCrossEntropy(model.hidden(batch), model.decoder.headFor(), labels).loss);
  });
  const norms = adapterParameters(model).map(
    ({ name, tensor: t }) => [name, native.globalNorm([t.grad!]).itemSync()] as const,
  );
  // B starts at zero, so that only B has a gradient in the first step.
  for (const [name, norm] of norms) expect(norm > 0, name).toBe(name.includes("lora_B"));
});

it("refuses a block of an odd length", () => {
  const model = tinyModel();
  expect(() => quantizeNf4(model, { block: 31 })).toThrow(/block/);
});
