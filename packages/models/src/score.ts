/** Log-probabilities of continuations, without holding the logits of all tokens. */
import { FormatError, native, noGrad, onDevice, scope, type Tensor, tensor } from "@llm/core";
import { createInputs } from "./decoder.js";
import type { CausalLM } from "./model.js";
import type { Score, TokenIds } from "./types.js";

/** Tokens computed together. */
const batchTokens = 2048;
/** Elements of logits held at a time. */
const logitElements = 16 << 20;

/** @see LanguageModel.score */
export async function scoreContinuations(
  model: CausalLM,
  prefix: TokenIds,
  continuations: readonly TokenIds[],
  options: { signal?: AbortSignal },
): Promise<Score[]> {
  if (prefix.length === 0)
    throw new FormatError("[score] the prefix is empty: it needs at least one token (usually the begin token)");
  const scores: Score[] = [];
  for (let start = 0; start < continuations.length;) {
    options.signal?.throwIfAborted();
    let end = start;
    let tokens = 0;
    while (
      end < continuations.length &&
      (end === start || tokens + prefix.length + continuations[end]!.length <= batchTokens)
    )
      tokens += prefix.length + continuations[end++]!.length;
    scores.push(...(await scoreBatch(model, prefix, continuations.slice(start, end))));
    start = end;
  }
  return scores;
}

async function scoreBatch(model: CausalLM, prefix: TokenIds, continuations: readonly TokenIds[]): Promise<Score[]> {
  const { decoder } = model;
  const ids: number[] = [];
  const positions: number[] = [];
  const cu = [0];
  /** Rows whose logits predict a continuation token, and that token. */
  const rows: number[] = [];
  const targets: number[] = [];
  for (const continuation of continuations) {
    const begin = ids.length;
    const all = [...prefix, ...continuation];
    if (all.length > model.maxTokens)
      throw new FormatError(
        `[score] prefix and continuation have ${all.length} tokens, the model takes ${model.maxTokens}`,
      );
    // The last token predicts nothing that is asked for.
    all.slice(0, -1).forEach((id, i) => {
      ids.push(id);
      positions.push(i);
    });
    continuation.forEach((id, i) => {
      rows.push(begin + prefix.length - 1 + i);
      targets.push(id);
    });
    cu.push(ids.length);
  }
  if (rows.length === 0)
    return continuations.map(() => ({ logprob: 0, greedy: true, tokenLogprobs: new Float64Array(0) }));
  const compute = (): { logprob: Tensor; greedy: Tensor } =>
    scope(() => {
      const hidden = decoder.forward(
        createInputs(Int32Array.from(ids), Int32Array.from(positions), Int32Array.from(cu)),
      );
      const wanted = native.gatherRows(hidden, tensor(Int32Array.from(rows)));
      const targets_R = tensor(Int32Array.from(targets));
      const chunk = Math.max(16, Math.floor(logitElements / decoder.spec.vocabSize));
      const parts: { logprob: Tensor; greedy: Tensor }[] = [];
      for (let at = 0; at < rows.length; at += chunk) {
        const stop = Math.min(rows.length, at + chunk);
        parts.push(
          scope(() => {
            const [logprob, greedy] = native.tokenLogprobs(
              decoder.logits(wanted.rows(at, stop)),
              targets_R.rows(at, stop),
            );
            return { logprob, greedy };
          }),
        );
      }
      return {
        logprob: native.concatRows(parts.map((p) => p.logprob)),
        greedy: native.concatRows(parts.map((p) => p.greedy)),
      };
    });
  const step = onDevice(model.device, () => noGrad(compute));
  const logprob = (await step.logprob.data()) as Float32Array;
  const greedy = step.greedy.dataSync() as Int32Array;
  step.logprob.dispose();
  step.greedy.dispose();
  let at = 0;
  return continuations.map((continuation) => {
    const tokenLogprobs = Float64Array.from(logprob.subarray(at, at + continuation.length));
    const allGreedy = greedy.subarray(at, at + continuation.length).every((g) => g === 1);
    at += continuation.length;
    return { logprob: tokenLogprobs.reduce((a, b) => a + b, 0), greedy: allGreedy, tokenLogprobs };
  });
}
