/**
 * LoRA on a base in FP8 against the same base in bf16: 100 steps on fresh tokens each, same seeds; prints how far the losses lie apart.
 * A second bf16 run with other noise in the adapters' start says how far they lie apart anyway. usage: fp8-parity [--steps 100]
 */
import { backward, createAdamW, linearCrossEntropy, onDevice, requireDevice, scope, tensor } from "@llm/core";
import { adapterParameters, applyLora, quantizeFp8 } from "@llm/lora";
import { createModel, trainBpe } from "@llm/models";
import { argument, shapes } from "./shapes.js";

requireDevice("cuda");
const steps = Number(argument("steps", "100"));
const tokenizer = trainBpe(["a"], { vocabSize: 257, specialTokens: ["<|endoftext|>"], eosToken: "<|endoftext|>" });
const config = {
  ...shapes["0.5b"],
  hidden_size: 1024,
  intermediate_size: 4096,
  num_hidden_layers: 8,
  num_attention_heads: 16,
  num_key_value_heads: 4,
  vocab_size: 1000,
};
const [sequences, length] = [8, 256];
const T = sequences * length;
const positions = Int32Array.from({ length: T }, (_, t) => t % length);
const cu = Int32Array.from({ length: sequences + 1 }, (_, i) => i * length);

/** Losses of the steps; the tokens follow a rule seven times of eight. */
function run(fp8: boolean, adapterSeed: number): number[] {
  let seed = 5;
  const random = (): number => (seed = (seed * 48271) % 2147483647);
  return onDevice("cuda", () => {
    const base = createModel(config, tokenizer, { dtype: "bf16", device: "cuda", seed: 3 });
    const model = applyLora(fp8 ? quantizeFp8(base, { release: true }) : base, {
      rank: 32,
      alpha: 64,
      seed: adapterSeed,
    });
    const optimizer = createAdamW(adapterParameters(model), { lr: 1e-3 });
    const losses: number[] = [];
    for (let i = 0; i < steps; i++) {
      const ids = Int32Array.from({ length: T }, () => random() % 1000);
      for (let t = 1; t < T; t++) if (random() % 8 !== 0) ids[t] = (ids[t - 1]! * 7 + 3) % 1000;
      const labels = Int32Array.from(ids, (_, t) => ((t + 1) % length === 0 ? -100 : ids[t + 1]!));
      const loss = scope(() => {
        const hidden = model.hidden({ ids_T: ids, positions_T: positions, cuSeqlens_B1: cu });
        const { loss } = linearCrossEntropy(hidden, model.decoder.headFor(), tensor(labels));
        backward(loss);
        optimizer.step({ gradScale: 1 / (T - sequences), maxGradNorm: 1 });
        optimizer.zeroGrad();
        return loss.detach();
      });
      losses.push(loss.itemSync() / (T - sequences));
      loss.dispose();
    }
    optimizer.dispose();
    model.dispose();
    return losses;
  });
}

const [bf16, fp8, other] = [run(false, 4), run(true, 4), run(false, 9)];
const every = (losses: number[]): string =>
  losses
    .filter((_, i) => i % Math.ceil(steps / 10) === 0 || i === steps - 1)
    .map((x) => x.toFixed(4))
    .join(" ");
console.log(`bf16 ${every(bf16)}\nfp8  ${every(fp8)}`);
const apart = (losses: number[]): string => {
  const relative = losses.map((x, i) => Math.abs(x - bf16[i]!) / bf16[i]!);
  const mean = relative.reduce((a, b) => a + b, 0) / steps;
  return `${(100 * Math.max(...relative)).toFixed(2)} % at most, ${(100 * mean).toFixed(2)} % on average`;
};
console.log(
  `RESULT fp8 from bf16 over ${steps} steps: ${apart(fp8)} (bar 1 %); bf16 with another adapter seed: ${apart(other)}`,
);
process.exit(0);
