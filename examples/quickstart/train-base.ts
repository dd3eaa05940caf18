/**
 * Makes the quickstart's base model, examples/models/sums: a tokenizer, then a Qwen2 trained from scratch on generated sums with train().
 * usage: npm run build && node tools/run-ts.mjs examples/quickstart/train-base.ts [minutes]      about 25 minutes on 2 cores
 */
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { createModel, trainBpe } from "@llm/models";
import { train } from "@llm/parallel";
import { baseBatch } from "./base-data.js";
import { createRandom, plainLine, question, questionText } from "./sums.js";

const minutes = Number(process.argv[2] ?? 25);
const steps = Number(process.env["STEPS"] ?? Math.round(minutes * 120));
const folder = process.env["OUT"] ?? fileURLToPath(new URL("../models/sums", import.meta.url));

const random = createRandom(1);
const texts = Array.from({ length: 4000 }, () => {
  const line = plainLine(random);
  return line.prompt + line.completion;
}).concat(Array.from({ length: 500 }, () => `user\nassistant\nsystem\n${questionText(question(random, false))}`));
const tokenizer = trainBpe(texts, { vocabSize: 512, specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] });

const model = createModel(
  {
    model_type: "qwen2",
    vocab_size: 512,
    hidden_size: 192,
    intermediate_size: 512,
    num_hidden_layers: 4,
    num_attention_heads: 6,
    num_key_value_heads: 2,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    tie_word_embeddings: true,
    bos_token_id: tokenizer.tokenToId("<|endoftext|>"),
    eos_token_id: tokenizer.tokenToId("<|endoftext|>"),
  },
  tokenizer,
  { seed: 1, initStd: 0.05 },
);

const batchTokens = 4096;
const run = train({
  model,
  data: { batches: ({ startStep = 0 } = {}) => Object.assign(Array.from({ length: steps - startStep }, (_, i) => i + startStep).values().map((step) => baseBatch(tokenizer, batchTokens, 1_000_000 + step)), { totalSteps: steps }) },
  steps,
  lr: 3e-3,
  betas: [0.9, 0.98],
  weightDecay: 0.05,
  maxGradNorm: 1,
  schedule: { kind: "cosine", warmupSteps: 100, minRatio: 0.02 },
});
for await (const report of run) {
  if (report.step % 50 === 0) console.log(`step ${report.step}/${steps}  loss ${report.loss.toFixed(4)}  ${Math.round(report.tokensPerSecond)} tokens/s`);
}
await run.done;
rmSync(folder, { recursive: true, force: true });
await model.save(folder, { dtype: "bf16" });
console.log(`saved ${folder}`);
