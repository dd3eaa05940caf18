/** Distillation: a student of half the depth learns the teacher's probabilities; next to it the same student without a teacher. */
import { createStudent, distillObjective } from "@llm/distill";
import { train } from "@llm/parallel";
import { ask, colourData, question, trainColours } from "./shared/colours.js";

const teacher = await trainColours();
const data = colourData(teacher.tokenizer);
const settings = { data, batchSize: 8, steps: 20, lr: 2e-3 };

const alone = createStudent(teacher, { layers: 1, init: "layers" });
const taught = createStudent(teacher, { layers: 1, init: "layers" });
console.log(`teacher ${teacher.decoder.parameterCount} parameters, student ${taught.decoder.parameterCount}`);

await train({ ...settings, model: alone }).done;
const objective = distillObjective({ teacher, temperature: 2, alpha: 0.7 });
for await (const { step, loss, metrics } of train({ ...settings, model: taught, objective })) {
  if (step % 5 === 0)
    console.log(
      `step ${step}  loss ${loss.toFixed(4)}  KL ${metrics?.["kl"]?.toFixed(4)}  cross-entropy ${metrics?.["ce"]?.toFixed(4)}`,
    );
}

for (const thing of ["grass", "an orange"]) {
  console.log(
    `${question(thing)}  teacher: ${await ask(teacher, question(thing))}  taught: ${await ask(taught, question(thing))}  alone: ${await ask(alone, question(thing))}`,
  );
}
