/**
 * Decoding one stream on the Qwen2.5-0.5B shape: 4-bit linears (groups of 32) and an 8-bit tied head, int8 activations, random weights.
 * usage: node tools/run-ts.mjs bench/cpu/decode.ts [tokens]; the peer: node bench/cpu/decode-llama-cpp.mjs FILE.gguf
 */
import { Linear, native, scope } from "@llm/core";
import { createModel, Decoder, trainBpe } from "@llm/models";
import { createEngine } from "@llm/serve";
import { machineLine, qwen25_05b } from "./measure.js";

const tokens = Number(process.argv[2] ?? 64);
const group = 32;
const tokenizer = trainBpe(["a"], { vocabSize: 257, specialTokens: ["<|endoftext|>"], eosToken: "<|endoftext|>" });
const dense = createModel({ ...qwen25_05b, max_position_embeddings: 1024 }, tokenizer, { seed: 1, dtype: "f32" });

const quantized = dense.decoder.mapLinears((l) => {
  if (l.storage.kind !== "dense") return l;
  const { weight } = l.storage;
  const [q, scales, zeros] = scope(() => native.quantizeW4(weight, group, 0));
  return l.with({
    storage: { kind: "w4", q: q.keep(), scales: scales.keep(), zeros: zeros.keep(), group, compute: "int8" },
  });
});
const [q, scales] = scope(() => native.quantizeQ8(dense.decoder.embed.weight, group));
const head = new Linear({
  name: "lm_head",
  outFeatures: dense.spec.vocabSize,
  inFeatures: dense.spec.hiddenSize,
  storage: { kind: "q8", q: q.keep(), scales: scales.keep(), group, compute: "int8" },
});
const model = dense.withDecoder(
  new Decoder(dense.spec, { embed: quantized.embed, blocks: [...quantized.blocks], norm: quantized.norm, head }),
);

// As the kernels read them: a scale in f32 a group, and a zero point of a byte with 4 bits.
const w4Bytes = quantized
  .linears()
  .reduce((n, l) => n + (l.outFeatures * l.inFeatures) / 2 + ((l.outFeatures * l.inFeatures) / group) * 5, 0);
const headBytes = head.outFeatures * head.inFeatures * (1 + 4 / group);
console.log(machineLine());
console.log(
  `weights read a token: ${((w4Bytes + headBytes) / 1e6).toFixed(0)} MB (4-bit linears ${(w4Bytes / 1e6).toFixed(0)}, 8-bit head ${(headBytes / 1e6).toFixed(0)})`,
);
const engine = await createEngine(model, { maxBatchSize: 1, maxTokens: 512, kvCache: { dtype: "bf16" } });
// The first run also brings the weights into the kernels' layout: it warms up and is not shown.
for (let repeat = 0; repeat < 4; repeat++) {
  let count = 0;
  const begin = performance.now();
  for await (const event of engine.generate([Int32Array.of(1, 2, 3, 4)], { maxTokens: tokens, ignoreEos: true })) {
    if (event.type === "finish") count = event.tokenIds.length;
  }
  const seconds = (performance.now() - begin) / 1000;
  if (repeat > 0)
    console.log(`${(count / seconds).toFixed(1)} tokens/s over ${count} tokens, the prompt of 4 tokens included`);
}
await engine.dispose();
