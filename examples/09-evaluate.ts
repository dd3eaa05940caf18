/** Two models on three tasks, with standard errors, a paired comparison and a report in four formats. */
import {
  compare,
  defineTask,
  evaluate,
  formatTable,
  generateText,
  multipleChoice,
  perplexity,
  questionAnswer,
  writeReport,
} from "@llm/eval";
import { colours, createRandomModel, question, sentences, trainColours } from "./shared/colours.js";

const trained = await trainColours();
const untrained = createRandomModel(trained.tokenizer);

const choices = colours.map(([thing, colour], i) => {
  const wrong = colours[(i + 3) % colours.length]![1];
  const [A, B] = (i % 2 === 0 ? [colour, wrong] : [wrong, colour]).map((option) => `It is ${option}.`);
  return { question: question(thing), A, B, answer: i % 2 === 0 ? "A" : "B" };
});
const short = defineTask({
  name: "short-answers",
  mode: "gen",
  config: { version: 1 },
  items: () => colours.map(([thing], i) => ({ id: String(i), thing })),
  ask: async ({ thing }, { model }) =>
    (await generateText(model, { messages: [{ role: "user", content: question(thing) }] }, { maxTokens: 16 })).text,
  score: (_, text) => ({ short: text.length <= 12 ? 1 : 0 }),
});

const results = await evaluate({
  models: { untrained, trained },
  tasks: [
    questionAnswer(
      colours.map(([thing, colour]) => ({ question: question(thing), answer: `It is ${colour}.` })),
      { name: "colours", maxTokens: 16 },
    ),
    multipleChoice(choices, {
      name: "choices",
      mode: "loglikelihood",
      target: "text",
      promptStyle: "chat",
      humanPrompt: "{question}",
      answerPrompt: "{answer}",
    }),
    perplexity({ text: sentences.join("\n"), name: "text", windowTokens: 64, stride: 32 }),
    short,
  ],
  workDir: "./eval-work", // a second run asks nothing again
});
console.log(formatTable(results));
console.table(compare(results, "trained", "untrained"));
const files = await writeReport(results, "./report");
console.log(files);
