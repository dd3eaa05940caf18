/** Files in two formats, mixed by weight, packed with a loss mask, shown and counted. */
import { writeFileSync } from "node:fs";
import { loadDataset, preview } from "@llm/data";
import { conversations, createTokenizer } from "./shared/colours.js";

const tokenizer = createTokenizer();
writeFileSync(
  "chat.jsonl",
  conversations((colour) => `It is ${colour}.`)
    .map((row) => JSON.stringify(row))
    .join("\n"),
);
writeFileSync("alpaca.json", JSON.stringify([{ instruction: "Name a colour.", input: "", output: "green" }]));

const data = loadDataset(
  [
    { path: "chat.jsonl", weight: 4 }, // OpenAI messages: found by the columns
    { path: "alpaca.json", format: "alpaca", weight: 1 },
  ],
  { tokenizer, maxTokens: 96, mix: "interleave-over", seed: 1 },
);

console.log(preview(data, 1)); // what is learned stands between ⟦ and ⟧
const report = data.report();
console.log(`${data.length} samples, ${data.tokenCount} tokens, ${data.trainedTokenCount} learned`);
console.log(report.sources.map(({ name, documents }) => `${name}: ${documents} documents`).join("; "));

const { train, evaluation } = data.split(0.25);
console.log(`${train.length} samples to train on, ${evaluation.length} to evaluate`);
for (const batch of train.batches({ batchSize: 2, epochs: 1 })) {
  console.log(`batch of ${batch.ids_T.length} tokens, documents begin at ${[...batch.cuSeqlens_B1].join(", ")}`);
}
