/** Training batches of the base model: packed lines, a pure function of seed and step. */
import type { TokenBatch, Tokenizer } from "@llm/models";
import { createRandom, type PlainLine, plainLine } from "./sums.js";

/** Share of the loss that the given part of a line gets; the following part has 1. */
const promptWeight = 0.1;

/** One line in sixteen is put as a chat, so that the base knows the chat template's marks. */
function lineText(line: PlainLine, chat: boolean): PlainLine {
  if (!chat) return line;
  return { prompt: `<|im_start|>user\n${line.prompt}<|im_end|>\n<|im_start|>assistant\n`, completion: `${line.completion}<|im_end|>\n` };
}

/** Packs fresh lines until `tokens` is reached; each line is a document of its own that ends with the end token. */
export function baseBatch(tokenizer: Tokenizer, tokens: number, seed: number, heldOut = false): TokenBatch {
  const random = createRandom(seed);
  const ids: number[] = [];
  const labels: number[] = [];
  const weights: number[] = [];
  const positions: number[] = [];
  const cu = [0];
  for (;;) {
    const line = lineText(plainLine(random, heldOut), random.below(16) === 0);
    const prompt = tokenizer.encode(line.prompt, { addSpecialTokens: false });
    const completion = tokenizer.encode(line.completion, { addSpecialTokens: false });
    const all = [...prompt, ...completion, tokenizer.eosTokenId!];
    if (ids.length + all.length > tokens) break;
    all.forEach((id, i) => {
      ids.push(id);
      positions.push(i);
      labels.push(i + 1 < all.length ? all[i + 1]! : -100);
      weights.push(i + 1 >= all.length ? 0 : i + 1 < prompt.length ? promptWeight : 1);
    });
    cu.push(ids.length);
  }
  return {
    ids_T: Int32Array.from(ids),
    labels_T: Int32Array.from(labels),
    lossWeights_T: Float32Array.from(weights),
    positions_T: Int32Array.from(positions),
    cuSeqlens_B1: Int32Array.from(cu),
  };
}
