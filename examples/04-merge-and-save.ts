/** Merge an adapter into the weights: W + s·B·A. The folder is a plain Hugging Face model, in as many files as you want. */
import { readdirSync } from "node:fs";
import { applyLora, mergeLora } from "@llm/lora";
import { loadModel } from "@llm/models";
import { train } from "@llm/parallel";
import { alienColour, ask, colourData, question, trainColours } from "./shared/colours.js";

const base = await trainColours();
const tuned = applyLora(base, { rank: 16 });
await train({
  model: tuned,
  data: colourData(base.tokenizer, (colour) => `It is ${alienColour(colour)}.`),
  batchSize: 8,
  steps: 60,
  lr: 1e-2,
}).done;

const merged = mergeLora(tuned); // new tensors where weights changed, the rest is shared with the base
await merged.save("./merged", { maxShardSize: "200KB" });
console.log(readdirSync("./merged").sort().join("\n"));

// The same files without the merged model in memory, one tensor at a time: tuned.save("./merged", { adapters: "merge" })
const loaded = await loadModel("./merged");
const ids = loaded.encodePrompt({ messages: [{ role: "user", content: question("snow") }] });
const [a, b] = (await Promise.all([tuned.logits(ids).data(), loaded.logits(ids).data()])) as [
  Float32Array,
  Float32Array,
];
const difference = a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);
console.log(`${question("snow")}  ${await ask(loaded, question("snow"))}`);
console.log(`adapter and merged folder: largest difference of a logit ${difference.toExponential(1)}`);
