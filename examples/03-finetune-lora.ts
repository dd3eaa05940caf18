/** LoRA: teach a model the colours of another planet, follow the loss, write a PEFT folder, load it again. */
import { adapterParameters, applyLora, loadLora, saveLora } from "@llm/lora";
import { train } from "@llm/parallel";
import { alienColour, ask, colourData, question, trainColours } from "./shared/colours.js";

const base = await trainColours();
const tuned = applyLora(base, { rank: 16, targets: "all-linear" });
const count = adapterParameters(tuned).reduce((sum, { tensor }) => sum + tensor.size, 0);
console.log(`${count} of ${base.decoder.parameterCount} parameters are trained`);

const data = colourData(base.tokenizer, (colour) => `It is ${alienColour(colour)}.`);
const run = train({
  model: tuned,
  data,
  batchSize: 8,
  steps: 60,
  lr: 1e-2,
  curve: { svg: "loss.svg", jsonl: "loss.jsonl" },
});
for await (const { step, loss, lr } of run) {
  if (step % 20 === 0) console.log(`step ${step}  loss ${loss.toFixed(4)}  lr ${lr.toExponential(1)}`);
}

await saveLora(tuned, "./adapter");
const loaded = await loadLora(base, "./adapter");
for (const thing of ["grass", "coal", "a lemon"]) {
  console.log(
    `${question(thing)}  base: ${await ask(base, question(thing))}  tuned: ${await ask(tuned, question(thing))}  from ./adapter: ${await ask(loaded, question(thing))}`,
  );
}
