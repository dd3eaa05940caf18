/** A training loop by hand: what train() does, without the comforts. A small Qwen2 of random weights learns two lines of text. */
import { backward, createAdamW, createSchedule, linearCrossEntropy, scope, tensor } from "@llm/core";
import { createModel, trainBpe } from "@llm/models";

const lines = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs."];
const tokenizer = trainBpe(lines, { vocabSize: 300, specialTokens: ["<end>"], eosToken: "<end>" });
const config = {
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
};
const model = createModel(config, tokenizer, { seed: 1 });

// The loop: two documents, one after the other on one token axis; a step is forward, backward, update.
const documents = lines.map((line) => Int32Array.of(...tokenizer.encode(line), tokenizer.eosTokenId!));
const ids_T = Int32Array.from(documents.flatMap((ids) => [...ids]));
const labels_T = Int32Array.from(documents.flatMap((ids) => [...ids.subarray(1), -100]));
const positions_T = Int32Array.from(documents.flatMap((ids) => [...ids.keys()]));
const cuSeqlens_B1 = Int32Array.of(0, documents[0]!.length, ids_T.length);
const learned = labels_T.filter((label) => label >= 0).length;

const parameters = model.decoder.trainable();
for (const { tensor: weight } of parameters) weight.requiresGrad = true;
const optimizer = createAdamW(parameters, { weightDecay: 0.01 });
const steps = 80;
const learningRate = createSchedule({ kind: "cosine", lr: 5e-3, totalSteps: steps, warmupSteps: 5 });

for (let step = 0; step < steps; step++) {
  const lossSum = scope(() => {
    const hidden_TC = model.hidden({ ids_T, positions_T, cuSeqlens_B1 });
    const { loss } = linearCrossEntropy(hidden_TC, model.decoder.headFor(), tensor(labels_T));
    backward(loss);
    optimizer.step({ lr: learningRate(step), gradScale: 1 / learned, maxGradNorm: 1 });
    optimizer.zeroGrad();
    return loss;
  });
  if (step % 10 === 0 || step === steps - 1)
    console.log(`step ${step + 1}: loss ${((await lossSum.item()) / learned).toFixed(4)}`);
  lossSum.dispose();
}

for await (const event of model.generate(["The quick"], { maxTokens: 40 })) {
  if (event.type === "finish") console.log(`The quick${event.text}`);
}
