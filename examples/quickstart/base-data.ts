/** Training batches of the base model: packed lines, a pure function of seed and step. */
import type { TokenBatch, Tokenizer } from "@llm/models";
import { aside, createRandom, listLine, type PlainLine, plainLine } from "./sums.js";

/** Share of the loss that the given part of a line gets; the following part has 1. */
const promptWeight = 0.1;

/** What a phase of the training shows more or less of. */
export interface Phase {
  /** One line in so many is put as a chat, half of those with something else below the question. */
  chatEvery: number;
  /** One line in so many looks something up in a list, besides those among the plain lines. */
  listEvery: number;
  /** Where a line is cut at a space, the space belongs to what follows, as in text that is written freely. */
  spaceFollows: boolean;
  /** The numbers of a list differ little. */
  nearLists: boolean;
}

/** Mostly sums; then lists and conversations, cut as a chat will write them; then lists that must be read with care. */
export const phases: readonly Phase[] = [
  { chatEvery: 6, listEvery: Infinity, spaceFollows: false, nearLists: false },
  { chatEvery: 3, listEvery: 3, spaceFollows: true, nearLists: false },
  { chatEvery: 3, listEvery: 2, spaceFollows: true, nearLists: true },
];

function nextLine(random: ReturnType<typeof createRandom>, phase: Phase, heldOut: boolean): PlainLine {
  let line =
    phase.listEvery < Infinity && random.below(phase.listEvery) === 0
      ? listLine(random, phase.nearLists)
      : plainLine(random, heldOut);
  if (phase.spaceFollows && line.prompt.endsWith(" "))
    line = { prompt: line.prompt.slice(0, -1), completion: ` ${line.completion}` };
  if (random.below(phase.chatEvery) > 0) return line;
  const below = random.below(2) === 0 ? `\n${aside(random, phase.nearLists)}` : "";
  return {
    prompt: `<|im_start|>user\n${line.prompt}${below}<|im_end|>\n<|im_start|>assistant\n`,
    completion: `${line.completion}<|im_end|>\n`,
  };
}

/** Packs fresh lines until `tokens` is reached; each line is a document of its own that ends with the end token. */
export function baseBatch(
  tokenizer: Tokenizer,
  tokens: number,
  seed: number,
  phase: Phase,
  heldOut = false,
): TokenBatch {
  const random = createRandom(seed);
  const ids: number[] = [];
  const labels: number[] = [];
  const weights: number[] = [];
  const positions: number[] = [];
  const cu = [0];
  for (;;) {
    const line = nextLine(random, phase, heldOut);
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
