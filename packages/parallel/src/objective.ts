/** What is learned of a batch: sums over tokens and the weight that they are divided by, never means. T tokens. */
import {
  cast,
  crossEntropy,
  gatherRows,
  linearCrossEntropy,
  noGrad,
  onDevice,
  scope,
  sum,
  type Tensor,
  tensorLike,
  UnsupportedError,
} from "@llm/core";
import { CausalLM, createInputs, type Decoder, ropeDependsOnLength, type TokenBatch } from "@llm/models";

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

/** Positions that have a label. */
function learnedPositions(batch: TokenBatch): number[] {
  const positions: number[] = [];
  for (let t = 0; t < batch.labels_T.length; t++) if (batch.labels_T[t]! >= 0) positions.push(t);
  return positions;
}

/** Whether the learned rows are few enough to be worth gathering: the output projection, a third of a small model, then skips prompts. */
const worthGathering = (learned: number, tokens: number): boolean => learned > 0 && learned <= 0.8 * tokens;

/** What the loss reads, as tensors beside the hidden states. L learned tokens, or all. */
interface Learned {
  /** i32 [L]; null: all rows in their order */
  rows: Tensor | null;
  labels_L: Tensor;
  weights_L: Tensor | null;
}

function lossOf(decoder: Decoder, hidden_TC: Tensor, { rows, labels_L, weights_L }: Learned): Tensor {
  const hidden = rows ? gatherRows(hidden_TC, rows) : hidden_TC;
  const { head } = decoder;
  return head && head.deltas.length > 0
    ? sum(crossEntropy(cast(head.forward(hidden), "f32"), labels_L, weights_L))
    : linearCrossEntropy(hidden, decoder.headFor(), labels_L, weights_L).loss;
}

const nextToken: Objective = (model, batch, { checkpointing }) => {
  const hidden = model.hidden(batch, { checkpointing });
  const { labels_T, lossWeights_T } = batch;
  const positions = learnedPositions(batch);
  const gathered = worthGathering(positions.length, labels_T.length);
  const upload = (x: Int32Array | Float32Array): Tensor => tensorLike(hidden, x);
  const lossSum = lossOf(model.decoder, hidden, {
    rows: gathered ? upload(Int32Array.from(positions)) : null,
    labels_L: upload(gathered ? Int32Array.from(positions, (t) => labels_T[t]!) : labels_T),
    weights_L: lossWeights_T
      ? upload(gathered ? Float32Array.from(positions, (t) => lossWeights_T[t]!) : lossWeights_T)
      : null,
  });
  return { lossSum, weightSum: batchWeight(batch) };
};

/** Room of a recorded step for batches of different sizes. */
export interface BatchRoom {
  tokens: number;
  documents: number;
  /** Tokens with a label. */
  learned: number;
  /** Longest position + 1. */
  length: number;
  /** Whether labels have weights. */
  weighted: boolean;
}

/** How steps of an objective are recorded once and replayed for batch after batch: arrays of fixed lengths, and the loss of tensors. */
export interface Replay<M> {
  /** Makes what a recording cannot: tables that the model builds on first use. */
  prepare(model: M, room: BatchRoom): void;
  /** The arrays of a batch that fits in `room`; what is filled up adds nothing to loss or gradients. */
  arrays(batch: TokenBatch, room: BatchRoom): Record<string, Int32Array | Float32Array>;
  /** The loss of these arrays as tensors. */
  loss(
    model: M,
    tensors: Readonly<Record<string, Tensor>>,
    room: BatchRoom,
    context: ObjectiveContext,
  ): Omit<ObjectiveResult, "weightSum">;
}

/** An objective whose steps `train({ replay: true })` can record. */
export type ReplayableObjective<M = TrainableModel> = Objective<M> & { readonly replay: Replay<M> };

export function roomOf(batch: TokenBatch): BatchRoom {
  return {
    tokens: batch.ids_T.length,
    documents: batch.cuSeqlens_B1.length - 1,
    learned: learnedPositions(batch).length,
    length: batch.positions_T.reduce((most, p) => Math.max(most, p + 1), 0),
    weighted: batch.lossWeights_T !== undefined,
  };
}

function padded<A extends Int32Array | Float32Array>(from: A, length: number, value: number): A {
  const to = new (from.constructor as new (n: number) => A)(length);
  to.set(from);
  to.fill(value, from.length);
  return to;
}

const zero = Int32Array.of(0);

const nextTokenReplay: Replay<TrainableModel> = {
  prepare(model, room) {
    const { decoder } = model;
    if (model.hidden !== CausalLM.prototype.hidden)
      throw new UnsupportedError(
        "[train] replay: the model has a `hidden` of its own, which a recording would pass by",
      );
    const { rope } = decoder.spec;
    if (ropeDependsOnLength(rope) && room.length > rope.maxPositions)
      throw new UnsupportedError(
        `[train] replay: beyond ${rope.maxPositions} positions the rotary angles of this model depend on the length of the batch`,
        { positions: room.length, maxPositions: rope.maxPositions },
      );
    onDevice(decoder.device, () => {
      // Quantized weights are packed for their kernels on first use.
      noGrad(() =>
        scope(() => decoder.logits(decoder.forward(createInputs(zero, zero, Int32Array.of(0, 1))))).dispose(),
      );
      decoder.rotary(room.length);
    });
  },
  arrays(batch, room) {
    const { labels_T, lossWeights_T } = batch;
    const gathered = worthGathering(room.learned, room.tokens);
    const positions = learnedPositions(batch);
    const weights = lossWeights_T ?? new Float32Array(labels_T.length).fill(1);
    const labels = gathered ? Int32Array.from(positions, (t) => labels_T[t]!) : labels_T;
    const L = gathered ? room.learned : room.tokens;
    return {
      ids_T: padded(batch.ids_T, room.tokens, 0),
      positions_T: padded(batch.positions_T, room.tokens, 0),
      // The tokens that fill up are a document of their own; further documents are empty.
      cuSeqlens_B1: padded(batch.cuSeqlens_B1, room.documents + 2, room.tokens),
      labels_L: padded(labels, L, -100),
      ...(gathered ? { rows: padded(Int32Array.from(positions), L, 0) } : {}),
      ...(room.weighted
        ? { weights_L: padded(gathered ? Float32Array.from(positions, (t) => weights[t]!) : weights, L, 0) }
        : {}),
    };
  },
  loss({ decoder }, tensors, room, { checkpointing }) {
    const { ids_T, positions_T, cuSeqlens_B1, labels_L, rows, weights_L } = tensors;
    const inputs = { ids_T: ids_T!, positions_T: positions_T!, cuSeqlens_B1: cuSeqlens_B1!, length: room.length };
    const hidden = decoder.forward(inputs, { checkpointing });
    return {
      lossSum: lossOf(decoder, hidden, { rows: rows ?? null, labels_L: labels_L!, weights_L: weights_L ?? null }),
    };
  },
};

/**
 * Next-token cross-entropy: lossSum = Σ_t w_t · −log softmax(h_t Wᵀ)[label_t] over positions with a label, weightSum = Σ_t w_t.
 * Fused with the output projection, so that the logits of all tokens never exist together; an adapted head (LoRA on lm_head) holds them.
 */
export const causalLanguageModel: ReplayableObjective = Object.assign(nextToken, { replay: nextTokenReplay });
