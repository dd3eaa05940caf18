/**
 * Makes the quickstart's base model, examples/models/sums: a tokenizer, then a Qwen2 trained from scratch on generated sums with train().
 * usage: npm run build && node tools/run-ts.mjs examples/quickstart/train-base.ts [folder]
 */
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { createModel, namedTemplates, type TokenBatch, trainBpe } from "@llm/models";
import { train } from "@llm/parallel";
import { baseBatch } from "./base-data.js";
import { createRandom, lettered, plainLine, question, questionText } from "./sums.js";

const steps = 16_000;
const batchTokens = 2048;
const folder = process.argv[2] ?? fileURLToPath(new URL("../models/sums", import.meta.url));

const random = createRandom(1);
const texts = Array.from({ length: 4000 }, () => {
  const line = plainLine(random);
  return line.prompt + line.completion;
}).concat(Array.from({ length: 500 }, () => `user\nassistant\nsystem\n${questionText(question(random, false))}`));
const tokenizer = trainBpe(texts, {
  vocabSize: 512,
  specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
  eosToken: "<|endoftext|>",
  chatTemplate: namedTemplates["chatml"]!.source,
});

const model = createModel(
  {
    model_type: "qwen2",
    vocab_size: Math.ceil(tokenizer.vocabSize / 64) * 64,
    hidden_size: 192,
    intermediate_size: 544,
    num_hidden_layers: 4,
    num_attention_heads: 6,
    num_key_value_heads: 2,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    tie_word_embeddings: true,
    bos_token_id: tokenizer.eosTokenId,
    eos_token_id: [tokenizer.eosTokenId, tokenizer.tokenToId("<|im_end|>")],
  },
  tokenizer,
  { seed: 1, initStd: 0.05, dtype: "bf16" },
);

/** Made afresh: the model never sees a document twice but by chance. */
function* batches(start: number): Generator<TokenBatch> {
  for (let step = start; ; step++) yield baseBatch(tokenizer, batchTokens, 1_000_000 + step, step / steps);
}

/** Share of prompts that go on exactly as wanted, to the end of the line. */
async function accuracy(lines: readonly { prompt: string; completion: string }[]): Promise<string> {
  let right = 0;
  const prompts = lines.map(({ prompt }) => prompt);
  for await (const event of model.generate(prompts, { maxTokens: 6 }))
    if (event.type === "finish" && event.text.split("\n")[0] === lines[event.index]!.completion) right++;
  return `${((right / lines.length) * 100).toFixed(1)} %`;
}

/** Sums of two three-digit numbers that are never trained on. */
function heldOutSums(count: number): { prompt: string; completion: string }[] {
  const lines = [];
  for (const random = createRandom(99); lines.length < count;) {
    const line = plainLine(random, true);
    if (/^\d{3}\+\d{3}=$/.test(line.prompt)) lines.push(line);
  }
  return lines;
}

/** Options of questions, and the letter of the right one. */
const lookups = (count: number): { prompt: string; completion: string }[] =>
  Array.from({ length: count }, (_, seed) => {
    const q = question(createRandom(seed), true);
    return { prompt: `${lettered([q.A, q.B, q.C].map(Number)).text}\n${q[q.answer]} is`, completion: ` ${q.answer}.` };
  });

async function judge(): Promise<void> {
  console.log(`held-out sums ${await accuracy(heldOutSums(500))}, letters ${await accuracy(lookups(500))}`);
}

const begin = performance.now();
const run = train({
  model,
  data: batches,
  steps,
  lr: 2e-3,
  betas: [0.9, 0.98],
  weightDecay: 0.05,
  maxGradNorm: 1,
  schedule: { kind: "cosine", warmupSteps: 100, minRatio: 0.02 },
  replay: model.device === "cuda", // a GPU is done with a step before the host has queued it
});
for await (const { step, loss, tokensPerSecond } of run) {
  if (step % 200 === 0)
    console.log(`step ${step}/${steps}  loss ${loss.toFixed(4)}  ${Math.round(tokensPerSecond)} tokens/s`);
  if (step % 2000 === 0 && step < steps) await judge();
}
await run.done;
await judge();
rmSync(folder, { recursive: true, force: true });
await model.save(folder, { dtype: "bf16" });
console.log(`saved ${folder} after ${((performance.now() - begin) / 60_000).toFixed(1)} minutes`);
