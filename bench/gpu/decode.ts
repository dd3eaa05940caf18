/**
 * Decoding one stream on a GPU in bf16: the recorded step alone (a graph replayed), and the engine with everything around it.
 * usage: decode --model 1.5b|7b|0.5b [--tokens 128]
 */
import {
  native,
  nativeDoctor,
  noGrad,
  onDevice,
  recordPlan,
  requireDevice,
  scope,
  startProfile,
  stopProfile,
  synchronize,
  tensor,
} from "@llm/core";
import { ContiguousCache, createModel } from "@llm/models";
import { createEngine } from "@llm/serve";
import { argument, type ShapeName, shapes, tokenizer } from "./shapes.js";

requireDevice("cuda");
const name = argument("model", "1.5b") as ShapeName;
const tokens = Number(argument("tokens", "128"));
const model = createModel(shapes[name], tokenizer, { dtype: "bf16", device: "cuda", seed: 1 });
const { decoder } = model;
// A token's step reads every weight but the rows of the embedding that it does not need.
const bytes = decoder.weightBytes - (model.spec.tieWordEmbeddings ? 0 : decoder.embed.weight.bytes);
console.log(`${nativeDoctor().cuda!.name}: ${name}, ${(bytes / 1e9).toFixed(2)} GB read a token`);

onDevice("cuda", () =>
  noGrad(() =>
    scope(() => {
      const cache = new ContiguousCache(model.spec, 1, 1024, "bf16");
      cache.plan([0], [1], [512]);
      const [ids, positions, cu] = [tensor(Int32Array.of(5)), tensor(Int32Array.of(512)), tensor(Int32Array.of(0, 1))];
      const [params, seeds, steps] = [
        tensor(new Float32Array(8), [1, 8]),
        tensor(new Int32Array(2), [1, 2]),
        tensor(Int32Array.of(0)),
      ];
      decoder.rotary(1024);
      const { plan } = recordPlan(() =>
        scope(() => {
          const hidden = decoder.forward(
            { ids_T: ids, positions_T: positions, cuSeqlens_B1: cu, length: 1024 },
            { cache },
          );
          const [sampled] = native.sample(decoder.logits(hidden), params, seeds, steps);
          return sampled;
        }),
      );
      // The first run is no graph yet, so what the device makes of the commands can be counted.
      startProfile();
      plan.run();
      synchronize();
      const launches = stopProfile().length;
      for (let i = 0; i < 5; i++) plan.run();
      synchronize();
      const rounds: number[] = [];
      for (let round = 0; round < 5; round++) {
        const start = performance.now();
        for (let i = 0; i < 50; i++) plan.run();
        synchronize();
        rounds.push((performance.now() - start) / 50);
      }
      rounds.sort((a, b) => a - b);
      const ms = rounds[2]!;
      console.log(
        `RESULT ${name} plan of ${plan.size} commands in ${launches} launches: ${ms.toFixed(3)} ms a step, ${(1000 / ms).toFixed(0)} tokens/s, ${(bytes / ms / 1e9).toFixed(2)} TB/s of weights`,
      );
      plan.dispose();
      cache.dispose();
    }),
  ),
);

const engine = await createEngine(model, { maxBatchSize: 1, maxTokens: 1024 });
for (let repeat = 0; repeat < 3; repeat++) {
  let count = 0;
  const start = performance.now();
  for await (const event of engine.generate([Int32Array.of(1, 2, 3, 4)], { maxTokens: tokens, ignoreEos: true })) {
    if (event.type === "finish") count = event.tokenIds.length;
  }
  const ms = performance.now() - start;
  console.log(`RESULT ${name} engine: ${((count / ms) * 1000).toFixed(0)} tokens/s, the prompt of 4 tokens included`);
}
process.exit(0);
