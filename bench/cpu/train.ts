/** Tokens per second of train() on a 4-layer Qwen2-shaped model of width 192, f32 and bf16, long and short documents: node tools/run-ts.mjs bench/cpu/train.ts [steps] */
import { memory, nativeDoctor } from "@llm/core";
import { createModel } from "@llm/models";
import { train } from "@llm/parallel";
import { byteTokenizer, packIds, randomDocuments } from "@llm/testing";

const steps = Number(process.argv[2] ?? 30);
const config = {
  model_type: "qwen2",
  vocab_size: 1024,
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 4,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  hidden_act: "silu",
  max_position_embeddings: 512,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  tie_word_embeddings: true,
};
const { isa, threads } = nativeDoctor();
for (const dtype of ["f32", "bf16"] as const) {
  for (const [documents, length] of [
    [8, 256],
    [128, 16],
  ] as const) {
    const model = createModel(config, byteTokenizer(), { dtype });
    const batch = packIds(randomDocuments(new Array(documents).fill(length), { vocabSize: 1024 }));
    const reports = [];
    const before = process.cpuUsage();
    const began = performance.now();
    for await (const report of train({ model, data: [batch], steps, lr: 1e-3 })) reports.push(report);
    const cpu = process.cpuUsage(before);
    const wall = performance.now() - began;
    const half = reports.slice(Math.floor(reports.length / 2));
    const ms = (half.at(-1)!.elapsedMs - half[0]!.elapsedMs) / (half.length - 1);
    const gflop = (6 * model.decoder.parameterCount * batch.ids_T.length) / 1e9;
    console.log(
      JSON.stringify({
        dtype,
        isa,
        threads,
        documents,
        length,
        tokensPerStep: batch.ids_T.length,
        msPerStep: Number(ms.toFixed(1)),
        tokensPerSecond: Math.round((batch.ids_T.length * 1000) / ms),
        gflops: Number((gflop / (ms / 1000)).toFixed(1)),
        cpuMsPerStep: Math.round((cpu.user + cpu.system) / 1000 / steps),
        cpuShare: Number(((cpu.user + cpu.system) / 1000 / wall).toFixed(2)),
        peakMiB: Math.round(memory().peakBytes / 2 ** 20),
        loss: reports.at(-1)!.loss,
      }),
    );
    model.dispose();
  }
}
