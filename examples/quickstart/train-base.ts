/**
 * Makes the quickstart's base model, examples/models/sums: a tokenizer, then a Qwen2 trained from scratch on generated sums with train().
 * usage: npm run build && node tools/run-ts.mjs examples/quickstart/train-base.ts [1 | 2 | 3]      run 1, 2 and 3 in turn: 13.9 M tokens in all
 */
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { createModel, loadModel, namedTemplates, type TokenBatch, trainBpe } from "@llm/models";
import { train } from "@llm/parallel";
import { baseBatch, type Phase, phases } from "./base-data.js";
import { createRandom, plainLine, question, questionText } from "./sums.js";

/** 1 begins from random weights; 2 and 3 go on from what was saved. */
const phase = Number(process.argv[2] ?? 1);
const batchTokens = 2048;
const folder = fileURLToPath(new URL("../models/sums", import.meta.url));

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

let model = createModel(
  {
    model_type: "qwen2",
    vocab_size: Math.ceil(tokenizer.vocabSize / 64) * 64,
    hidden_size: 128,
    intermediate_size: 352,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    tie_word_embeddings: true,
    bos_token_id: tokenizer.eosTokenId,
    eos_token_id: [tokenizer.eosTokenId, tokenizer.tokenToId("<|im_end|>")],
  },
  tokenizer,
  { seed: 1, initStd: 0.05 },
);

/** Batches of a phase are made afresh: the model never sees a line twice but by chance. */
const batches = (phase: Phase, seed: number) =>
  function* (start: number): Generator<TokenBatch> {
    for (let step = start; ; step++) yield baseBatch(tokenizer, batchTokens, seed + step, phase);
  };

/** Share of held-out three-digit sums that the model completes exactly. */
async function accuracy(count: number): Promise<number> {
  const lines: { prompt: string; completion: string }[] = [];
  for (const random = createRandom(99); lines.length < count;) {
    const line = plainLine(random, true);
    if (/^\d{3}\+\d{3}=$/.test(line.prompt)) lines.push(line);
  }
  let right = 0;
  for await (const event of model.generate(
    lines.map((l) => l.prompt),
    { maxTokens: 6 },
  )) {
    if (event.type === "finish" && event.text === lines[event.index]!.completion) right++;
  }
  return right / count;
}

async function learn(phase: Phase, seed: number, steps: number, lr: number): Promise<void> {
  const run = train({
    model,
    data: batches(phase, seed),
    steps,
    lr,
    betas: [0.9, 0.98],
    weightDecay: 0.05,
    maxGradNorm: 1,
    schedule: { kind: "cosine", warmupSteps: 100, minRatio: 0.02 },
  });
  for await (const { step, loss, tokensPerSecond } of run) {
    if (step % 100 === 0)
      console.log(`step ${step}/${steps}  loss ${loss.toFixed(4)}  ${Math.round(tokensPerSecond)} tokens/s`);
  }
  await run.done;
  console.log(`held-out sums of three digits: ${((await accuracy(500)) * 100).toFixed(1)} % exact`);
}

async function save(): Promise<void> {
  rmSync(folder, { recursive: true, force: true });
  await model.save(folder, { dtype: "bf16" });
  console.log(`saved ${folder}`);
}

// Each phase begins with the weights as the one before saved them.
const [seed, steps, lr] = (
  [
    [1_000_000, 3600, 3e-3],
    [2_000_000, 1600, 1.5e-3],
    [3_000_000, 1600, 1.5e-3],
  ] as const
)[phase - 1]!;
if (phase > 1) model = await loadModel(folder, { dtype: "f32" });
await learn(phases[phase - 1]!, seed, steps, lr);
await save();
