/**
 * CUDA against the CPU: 50 LoRA steps of a small model in f32 and bf16 must follow the CPU's f32 losses (1e-4 and 1 % relative), two runs
 * must agree to the bit, and 1,000 steps must leak nothing. usage: parity [--leak-steps 1000]
 */
import {
  backward,
  createAdamW,
  type Device,
  type DType,
  linearCrossEntropy,
  memory,
  onDevice,
  requireDevice,
  scope,
  tensor,
} from "@llm/core";
import { adapterParameters, applyLora } from "@llm/lora";
import { createModel } from "@llm/models";
import { argument, shapes, tokenizer } from "./shapes.js";

requireDevice("cuda");
const config = {
  ...shapes["0.5b"],
  hidden_size: 256,
  intermediate_size: 704,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 1000,
  initializer_range: 0.05,
};
const T = 384;
const documents = [0, 100, 230, T];
let seed = 5;
const random = (): number => (seed = (seed * 48271) % 2147483647);
// Text with something to learn: the next token is a function of this one, most of the time.
const ids = Int32Array.from({ length: T }, () => 0);
for (let t = 1; t < T; t++) ids[t] = random() % 8 === 0 ? random() % 1000 : (ids[t - 1]! * 7 + 3) % 1000;
const labels = Int32Array.from(ids, (_, t) => (documents.includes(t + 1) ? -100 : ids[t + 1]!));
const positions = Int32Array.from(ids, (_, t) => t - Math.max(...documents.filter((d) => d <= t)));

function run(device: Device, dtype: DType, steps: number, onStep?: (step: number) => void): number[] {
  return onDevice(device, () => {
    const model = applyLora(createModel(config, tokenizer, { dtype: dtype as "f32" | "bf16", device, seed: 3 }), {
      rank: 8,
      alpha: 16,
      seed: 4,
    });
    const optimizer = createAdamW(adapterParameters(model), { lr: 5e-3 });
    const losses: number[] = [];
    for (let i = 0; i < steps; i++) {
      const loss = scope(() => {
        const hidden = model.hidden({ ids_T: ids, positions_T: positions, cuSeqlens_B1: Int32Array.from(documents) });
        const { loss } = linearCrossEntropy(hidden, model.decoder.headFor(), tensor(labels));
        backward(loss);
        optimizer.step({ gradScale: 1 / (T - 3), maxGradNorm: 1 });
        optimizer.zeroGrad();
        return loss.detach();
      });
      if (!onStep || i % 100 === 0) losses.push(loss.itemSync() / (T - 3));
      loss.dispose();
      onStep?.(i);
    }
    optimizer.dispose();
    model.dispose();
    return losses;
  });
}

const worst = (a: number[], b: number[]): number => Math.max(...a.map((x, i) => Math.abs(x - b[i]!) / b[i]!));
const reference = run("cpu", "f32", 50);
const f32 = run("cuda", "f32", 50);
const bf16 = run("cuda", "bf16", 50);
const again = run("cuda", "bf16", 50);
console.log(
  `losses: first ${reference[0]!.toFixed(4)}, last ${reference[49]!.toFixed(4)} (cpu f32), ${f32[49]!.toFixed(4)} (cuda f32), ${bf16[49]!.toFixed(4)} (cuda bf16)`,
);
console.log(`RESULT cuda f32 follows cpu f32 within ${worst(f32, reference).toExponential(1)} (bar 1e-4)`);
console.log(`RESULT cuda bf16 follows cpu f32 within ${(100 * worst(bf16, reference)).toFixed(2)} % (bar 1 %)`);
console.log(`RESULT two cuda runs are ${bf16.every((x, i) => x === again[i]) ? "equal to the bit" : "DIFFERENT"}`);
const marks: string[] = [];
run("cuda", "bf16", Number(argument("leak-steps", "1000")), (step) => {
  if (step % 250 !== 249 && step !== 9) return;
  const m = memory("cuda");
  marks.push(
    `step ${step + 1}: ${m.liveTensors} tensors, ${(m.liveBytes / 2 ** 20).toFixed(2)} MiB live, ${((m.liveBytes + m.cachedBytes) / 2 ** 20).toFixed(0)} MiB mapped`,
  );
});
console.log(`RESULT leak check: ${marks.join("; ")}`);
process.exit(0);
