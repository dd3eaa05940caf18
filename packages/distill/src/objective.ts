/** What a student learns from a teacher. T tokens of a packed batch. */
import {
  linearDistill,
  noGrad,
  parseOptions,
  scope,
  ShapeError,
  sum,
  type Tensor,
  tensorLike,
  UnsupportedError,
} from "@llm/core";
import type { CausalLM, Decoder, TokenBatch, Tokenizer } from "@llm/models";
import * as v from "valibot";
import { AlphaSchedule, alphaSchedule } from "./alpha.js";
import { checkSameVocabulary } from "./vocabulary.js";

/** What the objective needs of a teacher; CausalLM is one, quantized ones and ones with adapters too. */
export type Teacher = Pick<CausalLM, "decoder" | "hidden" | "tokenizer">;

/** What it needs of a student. */
export interface Student {
  readonly decoder: Decoder;
  hidden(
    batch: Pick<TokenBatch, "ids_T" | "positions_T" | "cuSeqlens_B1">,
    options?: { checkpointing?: boolean },
  ): Tensor;
  /** Compared with the teacher's, when there is one. */
  readonly tokenizer?: Tokenizer;
}

/** What train() tells an objective about the step. */
export interface DistillContext {
  /** Optimizer steps done before this one. @default 0 */
  step?: number;
  /** Steps of the whole run. */
  totalSteps?: number;
  /** Recompute each block's activations in the backward pass. @default false */
  checkpointing?: boolean;
  training?: boolean;
}

/** What the objective gives the trainer: sums over the batch and what they are divided by. */
export interface DistillResult {
  /** Σ weight · (alpha · T² · KL + (1 − alpha) · CE) over the batch; f32 [1], differentiable. */
  lossSum: Tensor;
  /** What sums are divided by, over a whole optimizer step: see `reduction`. */
  weightSum: number;
  /** Sums f32 [1] to be divided alike: `kl` (with T²), `ce`, and `alpha`. */
  metrics: { kl: Tensor; ce: Tensor; alpha: Tensor };
}

/** An objective for train(), or to be called by hand inside `scope()`. */
export type DistillObjective = (student: Student, batch: TokenBatch, context?: DistillContext) => DistillResult;

const isTeacher = (value: unknown): value is Teacher => {
  const t = value as Partial<Teacher> | null | undefined;
  return (
    typeof t?.hidden === "function" &&
    typeof t.decoder?.headFor === "function" &&
    typeof t.tokenizer?.encode === "function"
  );
};

export const DistillOptions = v.strictObject({
  /** The model to learn from; only read. */
  teacher: v.custom<Teacher>(isTeacher, "expected a model (loadModel)"),
  /** T > 0: softens both distributions, softmax(z / T); the KL term is multiplied by T², so that gradients keep their size. @default 2 */
  temperature: v.optional(v.pipe(v.number(), v.finite(), v.gtValue(0)), 2),
  /** Weight of the KL term in [0, 1], the cross-entropy's is 1 − alpha; a number, or a schedule over the steps. @default 0.5 */
  alpha: v.optional(v.union([v.pipe(v.number(), v.minValue(0), v.maxValue(1)), AlphaSchedule]), 0.5),
  /** "forward" KL(teacher ‖ student) covers all the teacher deems possible; "reverse" KL(student ‖ teacher) settles on a part. @default "forward" */
  kind: v.optional(v.picklist(["forward", "reverse"]), "forward"),
  /** Labels of the cross-entropy: the data's next tokens, or the teacher's likeliest ones at the same positions. @default "data" */
  hardLabels: v.optional(v.picklist(["data", "teacher"]), "data"),
  /**
   * What the summed loss of an optimizer step is divided by. "token": by the weight of all learned tokens, the mean over tokens; long
   * documents count more than short ones in proportion to their tokens. "batch": by the number of documents with a learned token, as
   * torch's `batchmean`: the mean over documents of the document's summed loss. Documents are those of `cuSeqlens_B1`; positions
   * without a label are in neither sum. @default "token"
   */
  reduction: v.optional(v.picklist(["token", "batch"]), "token"),
  /** Rows of logits held at a time, of each model. Default about 128 MiB. */
  chunk: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
});
export type DistillOptions = v.InferInput<typeof DistillOptions>;

/**
 * Knowledge distillation as an objective: Σ_t w_t · (alpha · T² · KL_t + (1 − alpha) · CE_t) over the positions with a label, both models
 * reading the same packed batch, the teacher without gradients. Both heads run in chunks of tokens, so that neither model's logits exist
 * at once; widths may differ, and a padded vocabulary is cut to the common part.
 * @returns an objective for train({ objective }); `alpha` is a function of the step alone, so that resumed runs are exact
 * @throws {OptionsError}  and when called: {UnsupportedError} another vocabulary than the teacher's, or an adapter on the student's head
 * @see Hinton et al. 2015, arXiv:1503.02531, section 2
 */
export function distillObjective(options: DistillOptions): DistillObjective {
  const { teacher, temperature, alpha, kind, hardLabels, reduction, chunk } = parseOptions(
    DistillOptions,
    options,
    "distillObjective",
  );
  const alphaAt = alphaSchedule(alpha);
  const checked = new WeakSet<object>();
  return (student, batch, context = {}) => {
    const { decoder } = student;
    if (!checked.has(decoder)) {
      if (student.tokenizer) checkSameVocabulary(teacher.tokenizer, student.tokenizer);
      if (decoder.head && decoder.head.deltas.length > 0) {
        throw new UnsupportedError(
          `[distillObjective] ${decoder.head.name} carries an adapter; the fused loss needs a plain head`,
          { name: decoder.head.name },
        );
      }
      checked.add(decoder);
    }
    const T = batch.ids_T.length;
    if (batch.labels_T.length !== T)
      throw new ShapeError(
        `[distillObjective] a batch's labels_T must be [${T}] like ids_T, got [${batch.labels_T.length}]`,
      );
    const now = alphaAt(context.step ?? 0, context.totalSteps ?? 0);
    const taught = noGrad(() => scope(() => teacher.hidden(batch)));
    const hidden = student.hidden(batch, { checkpointing: context.checkpointing ?? false });
    const weights = batch.lossWeights_T ? tensorLike(hidden, batch.lossWeights_T) : null;
    const { loss, kl, ce } = linearDistill(
      hidden,
      decoder.headFor(),
      taught,
      teacher.decoder.headFor(),
      tensorLike(hidden, batch.labels_T),
      weights,
      {
        temperature,
        alpha: now,
        kind,
        hardLabels,
        ...(chunk === undefined ? {} : { chunk }),
      },
    );
    const weightSum = reduction === "token" ? tokenWeight(batch) : learnedDocuments(batch);
    return {
      lossSum: loss,
      weightSum,
      metrics: noGrad(() => ({ kl: sum(kl), ce: sum(ce), alpha: tensorLike(loss, Float32Array.of(now * weightSum)) })),
    };
  };
}

/** Σ of the loss weights over positions with a label. */
function tokenWeight({ labels_T, lossWeights_T }: TokenBatch): number {
  let total = 0;
  for (let t = 0; t < labels_T.length; t++) if (labels_T[t]! >= 0) total += lossWeights_T ? lossWeights_T[t]! : 1;
  return total;
}

/** Documents in which something is learned. */
function learnedDocuments({ labels_T, lossWeights_T, cuSeqlens_B1 }: TokenBatch): number {
  let count = 0;
  for (let b = 0; b + 1 < cuSeqlens_B1.length; b++) {
    for (let t = cuSeqlens_B1[b]!; t < cuSeqlens_B1[b + 1]!; t++) {
      if (labels_T[t]! < 0 || lossWeights_T?.[t] === 0) continue;
      count++;
      break;
    }
  }
  return count;
}
