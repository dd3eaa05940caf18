/** What is learned of a batch: sums over tokens and the weight that they are divided by, never means. T tokens. */
import { crossEntropy, linearCrossEntropy, sum, type Tensor, tensor, cast } from "@llm/core";
import type { Decoder, TokenBatch } from "@llm/models";

/** What the default objective needs of a model; CausalLM is one. */
export interface TrainableModel {
  readonly decoder: Decoder;
  /** Final hidden states [T, C], under the tape. */
  hidden(batch: Pick<TokenBatch, "ids_T" | "positions_T" | "cuSeqlens_B1">, options?: { checkpointing?: boolean }): Tensor;
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
 * Next-token cross-entropy: lossSum = Σ_t w_t · −log softmax(h_t Wᵀ)[label_t] over positions with a label, weightSum = Σ_t w_t.
 * Fused with the output projection, so that the logits of all tokens never exist together; an adapted head (LoRA on lm_head) holds them.
 */
export const causalLanguageModel: Objective = (model, batch, { checkpointing }) => {
  const hidden = model.hidden(batch, { checkpointing });
  const labels = tensor(batch.labels_T);
  const weights = batch.lossWeights_T ? tensor(batch.lossWeights_T) : null;
  const { head } = model.decoder;
  const lossSum =
    head && head.deltas.length > 0
      ? sum(crossEntropy(cast(head.forward(hidden), "f32"), labels, weights))
      : linearCrossEntropy(hidden, model.decoder.headFor(), labels, weights).loss;
  return { lossSum, weightSum: batchWeight(batch) };
};
