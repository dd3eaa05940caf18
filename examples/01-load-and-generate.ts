/** Save a model as a Hugging Face folder, load it, stream its answer, sample with a seed, score a continuation. */
import { loadModel } from "@llm/models";
import { colours, question, trainColours } from "./shared/colours.js";

const made = await trainColours();
const saved = await made.save("./colours", { dtype: "bf16" });
console.log(`./colours: ${saved.files.join(", ")}, ${saved.totalBytes} bytes of tensors`);

const model = await loadModel("./colours");
console.log(`${model.definition.architecture}, ${model.spec.layers} layers, ${model.dtype}`);

for (const [thing] of colours.slice(0, 3)) {
  process.stdout.write(`${question(thing)} `);
  for await (const event of model.generate([{ messages: [{ role: "user", content: question(thing) }] }], {
    maxTokens: 16,
  })) {
    if (event.type === "text-delta") process.stdout.write(event.text);
    else console.log(`  (${event.usage.completionTokens} tokens, ${event.reason})`);
  }
}

// Several prompts are one batch; the seed makes sampling repeatable.
const prompts = [1, 2, 3].map(() => ({ messages: [{ role: "user", content: question("a parrot") }] }));
for await (const event of model.generate(prompts, { maxTokens: 16, temperature: 1, topP: 0.95, seed: 7 })) {
  if (event.type === "finish") console.log(`sample ${event.index}: ${event.text}`);
}

// How likely is each colour after the prompt? Natural logarithms.
const prefix = model.encodePrompt({ messages: [{ role: "user", content: question("snow") }] });
const options = ["white", "black"].map((colour) => model.tokenizer.encode(`It is ${colour}.`));
const scores = await model.score(prefix, options);
console.log(`log p(white) = ${scores[0]!.logprob.toFixed(3)}, log p(black) = ${scores[1]!.logprob.toFixed(3)}`);
model.dispose();
made.dispose();
