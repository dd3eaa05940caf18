/** Training batches of the base model: packed documents, a pure function of seed and progress. */
import type { TokenBatch, Tokenizer } from "@llm/models";
import { createRandom, type PlainLine, plainLine, type Random, randomList } from "./sums.js";

/** Share of the loss that what is given gets; what follows from it has 1. */
const promptWeight = 0.1;

/** Numbers in lists stay below this: short ones first, because looking up is learned on them much sooner. */
function listLimit(random: Random, progress: number): number {
  const limits = [10, 100, 1000, 2000, 2000];
  return random.pick(limits.slice(0, progress < 0.08 ? 1 : progress < 0.16 ? 2 : progress < 0.25 ? 3 : 5));
}

/** A list, then three to five lines: mostly which letter an entry has, some with what stands at a letter, some sums. */
function listDocument(random: Random, progress: number): PlainLine[] {
  const { text, entries } = randomList(random, listLimit(random, progress));
  return Array.from({ length: 3 + random.below(3) }, (_, i) => {
    const { letter, number } = random.pick(entries);
    const line = [
      () => plainLine(random),
      () => ({ prompt: `${letter} is`, completion: ` ${number}.` }),
      () => ({ prompt: `${number} is`, completion: ` ${letter}.` }),
    ][Math.min(2, random.below(6))]!();
    return { ...line, prompt: `${i === 0 ? `${text}\n` : ""}${line.prompt}` };
  });
}

/** Below a sum in a conversation may stand a list or another sum. */
function below(random: Random, progress: number): string {
  if (random.below(2) === 0) return "";
  if (random.below(2) === 0) return `\n${randomList(random, listLimit(random, progress)).text}`;
  const { prompt, completion } = plainLine(random);
  return `\n${prompt}${completion}`;
}

/** Lines that follow each other: as text, or as turns of a conversation (one document in four). */
function document(random: Random, progress: number): PlainLine[] {
  const chat = random.below(4) === 0;
  let lines: PlainLine[];
  if (random.next() < 0.3) lines = listDocument(random, progress).slice(0, chat ? 2 : undefined);
  else {
    const line = plainLine(random);
    lines = [chat ? { ...line, prompt: line.prompt + below(random, progress) } : line];
  }
  return lines.map(({ prompt, completion }, i) => {
    const gap = i === 0 ? "" : "\n";
    return chat
      ? {
          prompt: `${gap}<|im_start|>user\n${prompt}<|im_end|>\n<|im_start|>assistant\n`,
          completion: `${completion.trimStart()}<|im_end|>`,
        }
      : { prompt: `${gap}${prompt}`, completion };
  });
}

/** Packs fresh documents, each with the end token, until `tokens` is reached. `progress` in [0, 1]: how much of the training is done. */
export function baseBatch(tokenizer: Tokenizer, tokens: number, seed: number, progress: number): TokenBatch {
  const random = createRandom(seed);
  const ids: number[] = [];
  const labels: number[] = [];
  const weights: number[] = [];
  const positions: number[] = [];
  const cu = [0];
  for (;;) {
    const pieces = document(random, progress).flatMap(({ prompt, completion }) => [
      { text: prompt, weight: promptWeight },
      { text: completion, weight: 1 },
    ]);
    const all = pieces
      .flatMap(({ text, weight }) =>
        [...tokenizer.encode(text, { addSpecialTokens: false })].map((id) => ({ id, weight })),
      )
      .concat({ id: tokenizer.eosTokenId!, weight: 1 });
    if (ids.length + all.length > tokens) break;
    all.forEach(({ id }, i) => {
      const next = all[i + 1];
      ids.push(id);
      positions.push(i);
      labels.push(next?.id ?? -100);
      weights.push(next?.weight ?? 0);
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
