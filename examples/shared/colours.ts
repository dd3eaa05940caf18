/**
 * A little world for the examples: eight things and their colours, and a model of a few hundred kilobytes that learns them in a second
 * or two. Real models come from `loadModel("./folder")` or `loadModel("org/name")`; everything after that line is the same.
 */
import { loadDataset, type Dataset } from "@llm/data";
import { type CausalLM, createModel, type LanguageModel, namedTemplates, type Tokenizer, trainBpe } from "@llm/models";
import { train } from "@llm/parallel";

/** Thing and colour. */
export const colours: readonly (readonly [string, string])[] = [
  ["grass", "green"],
  ["snow", "white"],
  ["coal", "black"],
  ["blood", "red"],
  ["the sky", "blue"],
  ["a lemon", "yellow"],
  ["a flamingo", "pink"],
  ["an orange", "orange"],
];

/** How the question is put. */
export const question = (thing: string): string => `What colour is ${thing}?`;

/** Conversations in OpenAI's form; `answer` decides what the assistant says. */
export const conversations = (
  answer: (colour: string) => string,
): { messages: { role: string; content: string }[] }[] =>
  colours.map(([thing, colour]) => ({
    messages: [
      { role: "user", content: question(thing) },
      { role: "assistant", content: answer(colour) },
    ],
  }));

/** A byte-level BPE with ChatML's marks. */
export function createTokenizer(): Tokenizer {
  const texts = colours
    .map(([thing, colour]) => `user\n${question(thing)}\nassistant\nIt is ${colour}.\n`)
    .concat(sentences);
  return trainBpe(texts, {
    vocabSize: 384,
    specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    eosToken: "<|im_end|>",
    padToken: "<|endoftext|>",
    chatTemplate: namedTemplates["chatml"]!.source,
  });
}

/** A Qwen2 of random weights. Its config is what a Hugging Face folder has in config.json. */
export function createRandomModel(
  tokenizer: Tokenizer,
  size: { hidden?: number; layers?: number; seed?: number } = {},
): CausalLM {
  const { hidden = 64, layers = 2, seed = 1 } = size;
  const config = {
    model_type: "qwen2",
    vocab_size: tokenizer.vocabSize,
    hidden_size: hidden,
    intermediate_size: 2 * hidden,
    num_hidden_layers: layers,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 256,
    tie_word_embeddings: true,
  };
  return createModel(config, tokenizer, { seed, initStd: 0.05 });
}

/** The answers as training data. */
export const colourData = (tokenizer: Tokenizer, answer = (colour: string): string => `It is ${colour}.`): Dataset =>
  loadDataset({ rows: conversations(answer) }, { tokenizer, maxTokens: 128 });

/** The colours on another planet: each thing has the next one's. Something new to learn. */
export const alienColour = (colour: string): string => {
  const index = colours.findIndex(([, known]) => known === colour);
  return colours[(index + 1) % colours.length]![1];
};

/** The same facts as plain text. */
export const sentences: readonly string[] = colours.map(([thing, colour]) => `${question(thing)} ${colour}, it is.`);

/** A model that knows the colours: it answers "It is green." in a chat, and has read another way to say it as plain text. */
export async function trainColours(size: { hidden?: number; layers?: number } = {}): Promise<CausalLM> {
  const tokenizer = createTokenizer();
  const model = createRandomModel(tokenizer, size);
  const rows = sentences.map((text) => ({ text }));
  const data = loadDataset([{ rows: conversations((colour) => `It is ${colour}.`) }, { rows }], {
    tokenizer,
    maxTokens: 128,
  });
  await train({ model, data, batchSize: 16, steps: 60, lr: 1e-2 }).done;
  return model;
}

/** The model's whole answer to one question, greedy. */
export async function ask(model: LanguageModel, text: string): Promise<string> {
  for await (const event of model.generate([{ messages: [{ role: "user", content: text }] }], { maxTokens: 16 })) {
    if (event.type === "finish") return event.text;
  }
  throw new Error("a generation always ends with finish");
}
