/**
 * A LoRA step (r 16, all linear layers) of 512 tokens on four layers of the Qwen2.5-0.5B shape, f32 and bf16.
 * usage: node tools/run-ts.mjs bench/cpu/lora-step.ts; the peer: python bench/cpu/lora_step_torch.py (torch, transformers, peft)
 */
import { createAdamW } from "@llm/core";
import { adapterParameters, applyLora } from "@llm/lora";
import { createModel, trainBpe } from "@llm/models";
import { backward, linearCrossEntropy, scope, tensor } from "@llm/core";
import { machineLine, qwen25_05b, time } from "./measure.js";

const T = 512;
const tokenizer = trainBpe(["a"], { vocabSize: 257, specialTokens: ["<|endoftext|>"], eosToken: "<|endoftext|>" });
const ids = Int32Array.from({ length: T }, (_, i) => (i * 7919) % 150_000);
const labels = Int32Array.from(ids, (_, i) => ids[i + 1] ?? -100);
const positions = Int32Array.from(ids, (_, i) => i);

console.log(machineLine());
for (const dtype of ["f32", "bf16"] as const) {
  const model = applyLora(createModel({ ...qwen25_05b, num_hidden_layers: 4 }, tokenizer, { dtype, seed: 1 }), {
    rank: 16,
    alpha: 32,
  });
  const optimizer = createAdamW(adapterParameters(model), { lr: 1e-4 });
  const step = (): void =>
    scope(() => {
      const hidden = model.hidden({ ids_T: ids, positions_T: positions, cuSeqlens_B1: Int32Array.of(0, T) });
      const { loss } = linearCrossEntropy(hidden, model.decoder.headFor(), tensor(labels));
      backward(loss);
      optimizer.step({ gradScale: 1 / (T - 1), maxGradNorm: 1 });
      optimizer.zeroGrad();
    });
  const { best, median } = time(step, { repeats: 6, warmups: 2 });
  console.log(
    `${dtype}: ${(median * 1e3).toFixed(0)} ms a step median, ${(best * 1e3).toFixed(0)} ms best, ${Math.round(T / median)} tokens/s median`,
  );
  optimizer.dispose();
  model.dispose();
}
