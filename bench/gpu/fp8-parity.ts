/**
 * LoRA on a base in FP8 against the same base in bf16. A model learns a language of 1,000 tokens with all its weights, then an adapter learns that
 * an eighth of the rules changed: fresh tokens each step, the same for all runs. Prints how far the losses lie apart; a second
 * bf16 run from other random numbers in the adapter says how far they lie apart anyway. usage: fp8-parity [--steps 100] [--lr 2e-4] [--base-steps 400]
 */
import {
  backward,
  createAdamW,
  linearCrossEntropy,
  type NamedTensor,
  onDevice,
  requireDevice,
  scope,
  tensor,
} from "@llm/core";
import { adapterParameters, applyLora, quantizeFp8 } from "@llm/lora";
import { type CausalLM, createModel } from "@llm/models";
import { argument, shapes, tokenizer } from "./shapes.js";

requireDevice("cuda");
const steps = Number(argument("steps", "100"));
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

const base = createModel(config, tokenizer, { dtype: "bf16", device: "cuda", seed: 3 });

/** Losses of the steps. A token follows from the one before by a rule, seven times of eight. */
function train(model: CausalLM, parameters: NamedTensor[], lr: number, steps: number, changed: boolean): number[] {
  let seed = changed ? 7 : 5;
  const random = (): number => (seed = (seed * 48271) % 2147483647);
  const next = (id: number): number => (changed && id % 8 === 0 ? id * 11 + 500 : id * 7 + 3) % 1000;
  return onDevice("cuda", () => {
    const optimizer = createAdamW(parameters, { lr });
    const losses = Array.from({ length: steps }, () => {
      const ids = Int32Array.from({ length: T }, () => random() % 1000);
      for (let t = 1; t < T; t++) if (random() % 8 !== 0) ids[t] = next(ids[t - 1]!);
      const labels = Int32Array.from(ids, (_, t) => ((t + 1) % length === 0 ? -100 : ids[t + 1]!));
      const loss = scope(() => {
        const hidden = model.hidden({ ids_T: ids, positions_T: positions, cuSeqlens_B1: cu });
        const { loss } = linearCrossEntropy(hidden, model.decoder.headFor(), tensor(labels));
        backward(loss);
        optimizer.step({ gradScale: 1 / (T - sequences), maxGradNorm: 1 });
        optimizer.zeroGrad();
        return loss.detach();
      });
      const value = loss.itemSync() / (T - sequences);
      loss.dispose();
      return value;
    });
    optimizer.dispose();
    return losses;
  });
}

function adapt(frozen: CausalLM, seed: number): number[] {
  const model = applyLora(frozen, { rank: 32, alpha: 64, seed });
  return train(model, adapterParameters(model), Number(argument("lr", "2e-4")), steps, true);
}

const weights = base.decoder.trainable();
for (const { tensor: w } of weights) w.requiresGrad = true;
const learned = train(base, weights, 3e-4, Number(argument("base-steps", "400")), false);
for (const { tensor: w } of weights) w.requiresGrad = false;
console.log(`base: loss ${learned[0]!.toFixed(4)} to ${learned.at(-1)!.toFixed(4)}`);
const [bf16, fp8, other] = [adapt(base, 4), adapt(quantizeFp8(base), 4), adapt(base, 9)];
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
