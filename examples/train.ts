/** train() on a small model and data in memory: reports, a held-out loss, an answer now and then, checkpoints, a curve. */
import { loadDataset } from "@llm/data";
import { createModel, trainBpe } from "@llm/models";
import { train } from "@llm/parallel";

const capitals = {
  France: "Paris",
  Italy: "Rome",
  Japan: "Tokyo",
  Egypt: "Cairo",
  Peru: "Lima",
  Norway: "Oslo",
  Cuba: "Havana",
  Kenya: "Nairobi",
};
const rows = Object.entries(capitals).map(([country, capital]) => ({
  messages: [
    { role: "user", content: `What is the capital of ${country}?` },
    { role: "assistant", content: `${capital}.` },
  ],
}));

const chatTemplate =
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
const specialTokens = ["<|user|>", "<|assistant|>", "<|end|>"];
const texts = rows.flatMap(({ messages }) => messages.map((m) => m.content));
const tokenizer = trainBpe(texts, { vocabSize: 320, specialTokens, eosToken: "<|end|>", chatTemplate });
const model = createModel(
  {
    model_type: "qwen2",
    vocab_size: tokenizer.vocabSize,
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 128,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    hidden_act: "silu",
    tie_word_embeddings: true,
  },
  tokenizer,
  { seed: 1 },
);
const data = loadDataset({ rows, format: "messages" }, { tokenizer, maxTokens: 64 });

const run = train({
  model,
  data,
  steps: 60,
  batchSize: 4,
  lr: 5e-3,
  schedule: { kind: "cosine", warmupRatio: 0.1, minRatio: 0.1 },
  evaluation: { data, every: 30 },
  sample: { every: 30, prompts: [{ messages: rows[0]!.messages.slice(0, 1) }], maxTokens: 16 },
  checkpoint: { folder: "checkpoints", every: 30, resume: true },
  curve: { svg: "loss.svg", jsonl: "loss.jsonl" },
  output: "capitals",
});
for await (const step of run) {
  if (step.step % 10 === 0)
    console.log(
      `step ${step.step}/${step.totalSteps}: loss ${step.loss.toFixed(4)}, ${Math.round(step.tokensPerSecond)} tokens/s`,
    );
  if (step.evaluation) console.log(`  perplexity ${step.evaluation.perplexity.toFixed(3)}`);
  for (const { prompt, text } of step.samples ?? []) console.log(`  ${prompt} → ${text}`);
}
console.log(await run.done);
