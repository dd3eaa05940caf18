import { FormatError } from "@llm/core";
import type { LanguageModel } from "@llm/models";

/** Perplexity of some blocks; natural logarithms. */
export interface Perplexity {
  /** exp(nll) */
  perplexity: number;
  /** Mean negative log-likelihood of a predicted token, in nats. */
  nll: number;
  /** Predicted tokens: all but the first of each block. */
  tokens: number;
  /** Sum of −log p, and predicted tokens, of each block. */
  blocks: { nll: number; tokens: number }[];
}

/**
 * exp of the mean of −log p(token | the tokens before it in its block), over all tokens but the first of each block.
 * @param blocks ids, at least two each
 * @throws {FormatError} no blocks, or one too short
 */
export async function perplexityOf(
  model: Pick<LanguageModel, "score">,
  blocks: readonly Int32Array[],
  options: { signal?: AbortSignal } = {},
): Promise<Perplexity> {
  if (blocks.length === 0) throw new FormatError("[perplexityOf] expected at least one block of ids, got none");
  const parts: Perplexity["blocks"] = [];
  for (const ids of blocks) {
    if (ids.length < 2) throw new FormatError(`[perplexityOf] expected blocks of at least 2 ids, got ${ids.length}`);
    const [score] = await model.score(ids.subarray(0, 1), [ids.subarray(1)], options);
    parts.push({ nll: -score!.logprob, tokens: ids.length - 1 });
  }
  const tokens = parts.reduce((n, p) => n + p.tokens, 0);
  const nll = parts.reduce((n, p) => n + p.nll, 0) / tokens;
  return { perplexity: Math.exp(nll), nll, tokens, blocks: parts };
}

/** How two models differ on the same blocks. */
export interface PerplexityDifference {
  /** after.perplexity − before.perplexity */
  perplexity: number;
  /** after.nll − before.nll, nats a token. */
  nll: number;
  /** Standard error of `nll`, paired by block. */
  standardError: number;
}

/**
 * Difference of two perplexities measured on the same blocks. With d the difference of a block's summed nll and n its tokens:
 * Δ = Σd / Σn, standard error = √(B / (B − 1) · Σ (d − Δ n)²) / Σn over B blocks (a ratio estimate with blocks as clusters).
 * @throws {FormatError} the blocks differ
 */
export function comparePerplexity(before: Perplexity, after: Perplexity): PerplexityDifference {
  const B = before.blocks.length;
  if (after.blocks.length !== B || before.blocks.some((b, i) => b.tokens !== after.blocks[i]!.tokens)) {
    throw new FormatError("[comparePerplexity] expected two measurements of the same blocks");
  }
  const nll = after.nll - before.nll;
  const spread = before.blocks.reduce((sum, b, i) => sum + (after.blocks[i]!.nll - b.nll - nll * b.tokens) ** 2, 0);
  const standardError = B > 1 ? Math.sqrt((B / (B - 1)) * spread) / before.tokens : Infinity;
  return { perplexity: after.perplexity - before.perplexity, nll, standardError };
}
