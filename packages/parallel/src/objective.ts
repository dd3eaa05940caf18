/** What is learned of a batch: sums over tokens and the weight that they are divided by, never means. T tokens. */
import { cast, crossEntropy, gatherRows, linearCrossEntropy, sum, type Tensor, tensorLike } from "@llm/core";
import type { Decoder, TokenBatch } from "@llm/models";

/** What the default objective needs of a model; CausalLM is one. */
export interface TrainableModel {
  readonly decoder: Decoder;
  /** Final hidden states [T, C], under the tape. */
  hidden(
    batch: Pick<TokenBatch, "ids_T" | "positions_T" | "cuSeqlens_B1">,
    options?: { checkpointing?: boolean },
  ): Tensor;
}

/** What the trainer tells an objective about the step. */
export interface ObjectiveContext {
  /** Optimizer steps done before this one. */
  step: number;
  /** Steps of the whole run. */
  totalSteps: number;
  /** Recompute each block's activations in the backward pass. */
  checkpointing: boolean;
  /** False while evaluating: no gradients are recorded. */
  training: boolean;
}

/** Loss of a micro-batch, as sums. */
export interface ObjectiveResult {
  /** Σ weight · loss over the batch's tokens; f32 [1], differentiable. */
  lossSum: Tensor;
  /**
   * Σ weight, what the trainer divides by. A number where the batch tells it (`batchWeight`): then a step never waits for the
   * device. A tensor f32 [1] is read before the update.
   */
  weightSum: Tensor | number;
  /** Further sums f32 [1] to report, each divided by the step's weight. */
  metrics?: Record<string, Tensor>;
}

/** Loss of one micro-batch. Called inside `scope()`: intermediates are freed for you. Synchronous. */
export type Objective<M = TrainableModel> = (model: M, batch: TokenBatch, context: ObjectiveContext) => ObjectiveResult;

/** Σ of the loss weights over positions with a label; absent weights are 1. */
export function batchWeight(batch: Pick<TokenBatch, "labels_T" | "lossWeights_T">): number {
  const { labels_T, lossWeights_T } = batch;
  let total = 0;
  for (let t = 0; t < labels_T.length; t++) if (labels_T[t]! >= 0) total += lossWeights_T ? lossWeights_T[t]! : 1;
  return total;
}

/**
 * The rows of `hidden` that have a label, with their labels and weights, when they are few enough to be worth gathering: the output
 * projection, which may be a third of a small model, then skips prompts.
 */
function learnedRows(
  hidden: Tensor,
  batch: TokenBatch,
): { hidden: Tensor; labels: Int32Array; weights: Float32Array | undefined } {
  const { labels_T, lossWeights_T } = batch;
  const rows: number[] = [];
  for (let t = 0; t < labels_T.length; t++) if (labels_T[t]! >= 0) rows.push(t);
  if (rows.length > 0.8 * labels_T.length) return { hidden, labels: labels_T, weights: lossWeights_T };
  return {
    hidden: gatherRows(hidden, tensorLike(hidden, Int32Array.from(rows))),
    labels: Int32Array.from(rows, (t) => labels_T[t]!),
    weights: lossWeights_T && Float32Array.from(rows, (t) => lossWeights_T[t]!),
  };
}

/**
 * Next-token cross-entropy: lossSum = Σ_t w_t · −log softmax(h_t Wᵀ)[label_t] over positions with a label, weightSum = Σ_t w_t.
 * Fused with the output projection, so that the logits of all tokens never exist together; an adapted head (LoRA on lm_head) holds them.
 */
export const causalLanguageModel: Objective = (model, batch, { checkpointing }) => {
  const learned = learnedRows(model.hidden(batch, { checkpointing }), batch);
  const labels = tensorLike(learned.hidden, learned.labels);
  const weights = learned.weights ? tensorLike(learned.hidden, learned.weights) : null;
  const { head } = model.decoder;
  const lossSum =
    head && head.deltas.length > 0
      ? sum(crossEntropy(cast(head.forward(learned.hidden), "f32"), labels, weights))
      : linearCrossEntropy(learned.hidden, model.decoder.headFor(), labels, weights).loss;
  return { lossSum, weightSum: batchWeight(batch) };
};
