import { OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";
import { weightedMeanEstimate } from "../statistics.js";
import {
  defineTask,
  sha256,
  type Metric,
  type MetricSample,
  type ScoredItem,
  type Task,
  type TaskItem,
} from "../task.js";
import { readText } from "../rows.js";

export const perplexityOptionsSchema = v.strictObject({
  /** The text itself; or `file`. */
  text: v.optional(v.pipe(v.string(), v.minLength(1))),
  /** A text file in UTF-8. */
  file: v.optional(v.pipe(v.string(), v.minLength(1))),
  /** @default the file's name up to its first dot, or "perplexity" */
  name: v.optional(v.string()),
  /** Tokens that the model sees at once, context and scored tokens together. Default: the smaller of its maxTokens and 2048. */
  windowTokens: v.optional(v.pipe(v.number(), v.integer(), v.minValue(2))),
  /** Tokens scored per window; the rest of the window is context. Default: windowTokens − 1, the fastest and highest perplexity. */
  stride: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  /** Tokens per observation of the standard error; long enough that neighbours hardly depend on each other. @default 64 */
  blockTokens: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 64),
});

export type PerplexityOptions = v.InferInput<typeof perplexityOptionsSchema>;

/** One window of the text. */
export interface PerplexityItem extends TaskItem {
  /** Tokens that are given, and tokens that are scored after them. */
  context: number[];
  target: number[];
  /** UTF-8 bytes of the scored text, and words (runs without white space) that begin in it. */
  bytes: number;
  words: number;
  /** Of all ids of the text: observations of two models are paired only where it is the same. */
  tokensHash: string;
}

/** Log-probabilities of a window, summed by blocks of tokens. */
export interface PerplexityPrediction {
  /** Per block of scored tokens: [tokens, summed negative log-probability]. */
  blocks: [number, number][];
}

/**
 * How well a model predicts a text. The text is cut into windows of `windowTokens`, each scoring the next `stride`
 * tokens after as much context as fits; every token is scored once. The begin token (else the end token) comes before
 * the first; without either, the first token is only context.
 *
 * Metrics: `perplexity` exp(NLL), `nll_per_token` Σ −log p / tokens, `bits_per_byte` Σ −log₂ p / UTF-8 bytes,
 * `word_perplexity` exp(Σ −log p / words). Standard errors: of NLL by the ratio estimator over blocks of
 * `blockTokens` tokens; of the others from it by the delta method (SE(exp x) = exp(x)·SE(x)).
 * Only bits per byte and word perplexity may be compared between tokenizers.
 * @see Hugging Face "Perplexity of fixed-length models" (strided evaluation); EleutherAI/lm-evaluation-harness loglikelihood_rolling
 */
export function perplexity(options: PerplexityOptions): Task<PerplexityItem, PerplexityPrediction> {
  const parsed = parseOptions(perplexityOptionsSchema, options, "perplexity");
  if ((parsed.text === undefined) === (parsed.file === undefined))
    throw new OptionsError("[perplexity] expected either text or file");
  if (parsed.stride !== undefined && parsed.windowTokens !== undefined && parsed.stride >= parsed.windowTokens)
    throw new OptionsError(
      `[perplexity] stride: expected less than windowTokens (${parsed.windowTokens}), got ${parsed.stride}`,
    );
  let text = parsed.text;
  const defaultName = parsed.file === undefined ? "perplexity" : parsed.file.split(/[\\/]/).at(-1)!.split(".")[0]!;

  return defineTask<PerplexityItem, PerplexityPrediction>({
    name: parsed.name ?? defaultName,
    mode: "perplexity",
    config: { task: "perplexity", blockTokens: parsed.blockTokens },
    async load() {
      if (parsed.file !== undefined) text = await readText(parsed.file);
      if (!text) throw new OptionsError(`[perplexity] expected a text, got an empty ${parsed.file ?? "one"}`);
    },
    items({ model }) {
      const { tokenizer, maxTokens } = model;
      const window = parsed.windowTokens ?? Math.min(maxTokens, 2048);
      const stride = parsed.stride ?? window - 1;
      if (window > maxTokens || stride >= window)
        throw new OptionsError(
          `[perplexity] expected stride < windowTokens ≤ ${maxTokens} (the model's context), got ${stride} and ${window}`,
          { windowTokens: window, stride, maxTokens },
        );
      const own = tokenizer.encode(text!, { addSpecialTokens: false, parseSpecial: false });
      const begin = tokenizer.bosTokenId ?? tokenizer.eosTokenId;
      const ids = begin === undefined ? [...own] : [begin, ...own];
      if (ids.length < 2)
        throw new OptionsError(`[perplexity] expected a text of at least two tokens, got ${own.length}`);
      const tokensHash = sha256(ids.join(",")).slice(0, 16);
      const count = countText(tokenizer.decodeStream(), own, begin === undefined ? 0 : 1);
      const items: PerplexityItem[] = [];
      for (let from = 1; from < ids.length;) {
        const to = Math.min(ids.length, from + (from === 1 ? window - 1 : stride));
        items.push({
          id: String(items.length),
          context: ids.slice(Math.max(0, to - window), from),
          target: ids.slice(from, to),
          ...count(from, to),
          tokensHash,
        });
        from = to;
      }
      return items;
    },
    async ask(item, { model, signal }) {
      const options = signal === undefined ? {} : { signal };
      const [score] = await model.score(Int32Array.from(item.context), [Int32Array.from(item.target)], options);
      const blocks: [number, number][] = [];
      for (let at = 0; at < item.target.length; at += parsed.blockTokens) {
        const part = score!.tokenLogprobs.subarray(at, at + parsed.blockTokens);
        blocks.push([part.length, -part.reduce((sum, value) => sum + value, 0)]);
      }
      return { blocks };
    },
    score(_item, { blocks }) {
      const tokens = blocks.reduce((sum, [count]) => sum + count, 0);
      return { nll_per_token: blocks.reduce((sum, [, nll]) => sum + nll, 0) / tokens };
    },
    summarize: summarizePerplexity,
    view(item, { blocks }) {
      const nll = blocks.reduce((sum, [, part]) => sum + part, 0);
      return {
        prompt: `${item.context.length} tokens of context, ${item.target.length} scored (${item.bytes} bytes)`,
        prediction: `nll per token ${(nll / item.target.length).toFixed(5)}, perplexity ${Math.exp(nll / item.target.length).toFixed(4)}`,
      };
    },
  });
}

/** Bytes and words of any range of ids; `offset` = ids in front that are no text. */
function countText(
  stream: { push(id: number): string; end(): string },
  own: ArrayLike<number>,
  offset: number,
): (from: number, to: number) => { bytes: number; words: number } {
  const bytes = [0];
  const words = [0];
  let inWord = false;
  for (let i = 0; i < own.length; i++) {
    const piece = stream.push(own[i]!) + (i === own.length - 1 ? stream.end() : "");
    let begun = 0;
    for (const character of piece) {
      const space = /\s/u.test(character);
      if (!space && !inWord) begun++;
      inWord = !space;
    }
    bytes.push(bytes[i]! + Buffer.byteLength(piece));
    words.push(words[i]! + begun);
  }
  return (from, to) => ({
    bytes: bytes[to - offset]! - bytes[from - offset]!,
    words: words[to - offset]! - words[from - offset]!,
  });
}

function summarizePerplexity(scored: ScoredItem<PerplexityItem, PerplexityPrediction>[]): Metric[] {
  const samples: MetricSample[] = [];
  let bytes = 0;
  let words = 0;
  for (const { item, prediction } of scored) {
    bytes += item.bytes;
    words += item.words;
    prediction.blocks.forEach(([tokens, nll], i) =>
      samples.push({ id: `${item.tokensHash}:${item.id}:${i}`, value: nll / tokens, weight: tokens }),
    );
  }
  const estimate = weightedMeanEstimate(
    samples.map((sample) => sample.value),
    samples.map((sample) => sample.weight),
  );
  if (!estimate) return [];
  const { value: nll, standardError, n } = estimate;
  const tokens = samples.reduce((sum, sample) => sum + sample.weight, 0);
  const make = (name: string, value: number, slope: number): Metric => ({
    name,
    value,
    standardError: standardError === undefined ? undefined : standardError * slope,
    n,
    higherIsBetter: false,
    unit: "number",
  });
  const perByte = tokens / bytes / Math.LN2;
  const perWord = tokens / words;
  const metrics = [make("perplexity", Math.exp(nll), Math.exp(nll)), { ...make("nll_per_token", nll, 1), samples }];
  if (bytes > 0) metrics.push(make("bits_per_byte", nll * perByte, perByte));
  if (words > 0) metrics.push(make("word_perplexity", Math.exp(nll * perWord), Math.exp(nll * perWord) * perWord));
  return metrics;
}
