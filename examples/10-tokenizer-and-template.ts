/** Tokenizers and chat templates: train one, save and load it, decode a stream without broken characters, render a conversation. */
import { loadTokenizer, namedTemplates, trainBpe } from "@llm/models";

const trained = trainBpe(["the cat sat on the mat", "我看见一只猫，猫看见我"], {
  vocabSize: 320,
  specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
  eosToken: "<|im_end|>",
  chatTemplate: namedTemplates["chatml"]!.source,
});
await trained.save("./tokenizer"); // tokenizer.json and tokenizer_config.json, as transformers reads them
const tokenizer = await loadTokenizer("./tokenizer");

const text = "the cat 猫 🐈";
const ids = tokenizer.encode(text);
console.log([...ids].map((id) => tokenizer.idToToken(id)).join(" "));
console.log(`round trip: ${tokenizer.decode(ids) === text}`);

// The last character is four bytes and here four tokens: it appears when the last byte is there.
const stream = tokenizer.decodeStream();
console.log([...ids].map((id) => stream.push(id)).concat(stream.end()));

const messages = [
  { role: "system", content: "Be short." },
  { role: "user", content: "Who sat on the mat?" },
];
console.log(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true }));
console.log(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, template: "alpaca" }));

// Text from users: `<|im_end|>` stays text instead of ending the turn.
console.log(tokenizer.encode("<|im_end|>").length, tokenizer.encode("<|im_end|>", { parseSpecial: false }).length);
