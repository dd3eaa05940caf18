/** The engine: many requests at once over one model, with paged int8 keys and values and prefix reuse. */
import { createEngine } from "@llm/serve";
import { colours, question, trainColours } from "./shared/colours.js";

const model = await trainColours();
const engine = await createEngine(model, {
  kvCache: { dtype: "int8", maxEntryCount: 256, blockSize: 8 },
  maxBatchSize: 8,
});

// A request each; the engine runs them together.
const began = performance.now();
const answers = await Promise.all(
  colours.map(async ([thing]) => {
    let text = "";
    for await (const event of engine.stream({
      prompt: { messages: [{ role: "user", content: question(thing) }] },
      maxTokens: 16,
    })) {
      if (event.type === "text-delta") text += event.text;
    }
    return `${question(thing)} ${text}`;
  }),
);
console.log(answers.join("\n"));

const { generatedTokens, steps } = engine.stats();
console.log(`${generatedTokens} tokens in ${steps} steps and ${Math.round(performance.now() - began)} ms`);

// Several continuations of one prompt share its blocks; what the prompt has in common with earlier ones is not computed again.
for await (const event of engine.stream({
  prompt: { messages: [{ role: "user", content: question("a parrot") }] },
  n: 3,
  temperature: 1,
  seed: 1,
  maxTokens: 16,
})) {
  if (event.type === "finish") console.log(`continuation ${event.index}: ${event.text}`);
}
const { prefixHitTokens, kvBlocksUsed, kvBlocksTotal } = engine.stats();
console.log(
  `${prefixHitTokens} prompt tokens from the prefix cache, ${kvBlocksUsed} of ${kvBlocksTotal} blocks in use`,
);
await engine.dispose();
model.dispose();
