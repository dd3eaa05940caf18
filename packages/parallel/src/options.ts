/** Options of train(): one schema for types, defaults, checks and the command line. */
import type { NamedTensor, Optimizer } from "@llm/core";
import type { ChatMessage } from "@llm/models";
import * as v from "valibot";
import { isTrainData, type TrainData } from "./batch-source.js";
import type { Objective } from "./objective.js";
import type { ParameterChoice } from "./parameters.js";
import type { StepReport } from "./report.js";

const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const unit = v.pipe(v.number(), v.minValue(0), v.maxValue(1));
const notNegative = v.pipe(v.number(), v.finite(), v.minValue(0));
const data = v.custom<TrainData>(
  isTrainData,
  "expected a data set, a list or iterable of batches, or a function that returns one",
);
const method = (value: unknown, name: string): boolean =>
  typeof (value as Record<string, unknown> | null)?.[name] === "function";

/** Learning rate over the steps: linear warm-up, then the shape. */
export const TrainScheduleOptions = v.strictObject({
  /** Shape after the warm-up; noam is for lr ≈ 1. @default "cosine" */
  kind: v.optional(v.picklist(["constant", "linear", "cosine", "noam"]), "cosine"),
  /** Steps of linear warm-up. Give this or `warmupRatio`. @default 0 */
  warmupSteps: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0))),
  /** Warm-up as a share of all steps, rounded up. */
  warmupRatio: v.optional(unit),
  /** Last learning rate as a fraction of the peak (linear, cosine). @default 0 */
  minRatio: v.optional(unit, 0),
});

/** What the model says now and then while it learns. */
export const TrainSampleOptions = v.strictObject({
  /** Steps between samples. */
  every: count,
  /** Texts to continue, or conversations to answer. */
  prompts: v.pipe(
    v.array(
      v.union([
        v.string(),
        v.custom<{ messages: ChatMessage[] }>(
          (p) => Array.isArray((p as { messages?: unknown } | null)?.messages),
          "expected text or {messages}",
        ),
      ]),
    ),
    v.minLength(1),
  ),
  /** Most tokens of an answer. @default 64 */
  maxTokens: v.optional(count, 64),
  /** 0 = greedy. @default 0 */
  temperature: v.optional(notNegative, 0),
});

/** Checkpoints to resume from. */
export const TrainCheckpointOptions = v.strictObject({
  /** Holds one folder `step-N` a checkpoint. One run a folder. */
  folder: v.pipe(v.string(), v.nonEmpty()),
  /** Steps between checkpoints. @default only the last step, and on abort with `onAbort` */
  every: v.optional(count),
  /** Newest checkpoints that are kept. @default 2 */
  keep: v.optional(count, 2),
  /** true: go on from the newest checkpoint, or begin when there is none; a path: from that `step-N`. @default false */
  resume: v.optional(v.union([v.boolean(), v.pipe(v.string(), v.nonEmpty())]), false),
  /** Resume although options differ from the checkpoint's; the result then is another than the uninterrupted run's. @default false */
  force: v.optional(v.boolean(), false),
  /** Write one when `signal` aborts. @default true */
  onAbort: v.optional(v.boolean(), true),
});

/** Where the loss curve goes; both files are complete after every write. */
export const TrainCurveOptions = v.strictObject({
  /** Picture of loss, its moving average and the learning rate. */
  svg: v.optional(v.pipe(v.string(), v.nonEmpty())),
  /** One JSON object a line: a step's report. */
  jsonl: v.optional(v.pipe(v.string(), v.nonEmpty())),
});

/** Loss on data that is not trained on. */
export const TrainEvaluationOptions = v.strictObject({
  data,
  /** Steps between evaluations; also after the last step. @default only after the last step */
  every: v.optional(count),
  /** Samples a batch, when `data` is a data set. Give this or `batchTokens`. */
  batchSize: v.optional(count),
  /** Most tokens a batch, when `data` is a data set. */
  batchTokens: v.optional(count),
  /** Most batches. @default all; required for data without end */
  maxBatches: v.optional(count),
});

export const TrainOptions = v.strictObject({
  /** A CausalLM, or with an own `objective` and `parameters` anything. Trained in place. */
  model: v.custom<object>(
    (m) => typeof m === "object" && m !== null,
    "expected a model (loadModel, createModel, applyLora)",
  ),
  data,
  /** Loss of a micro-batch. @default next-token cross-entropy */
  objective: v.optional(
    v.custom<Objective<never>>(
      (f) => typeof f === "function",
      "expected a function (model, batch) => { lossSum, weightSum }",
    ),
  ),
  /** "adapters", "all", or a list of named tensors. @default the adapters that want gradients, else all weights */
  parameters: v.optional(
    v.union([
      v.picklist(["adapters", "all"]),
      v.custom<readonly NamedTensor[]>(
        (p) => Array.isArray(p) && p.every((e) => typeof e?.name === "string" && e.tensor?.isTensor === true),
        'expected "adapters", "all" or a list of { name, tensor }',
      ),
    ]) as v.GenericSchema<ParameterChoice>,
  ),
  /** "adamw", "sgd", or an optimizer over the same tensors (then lr comes from here, the rest from it). @default "adamw" */
  optimizer: v.optional(
    v.union([
      v.picklist(["adamw", "sgd"]),
      v.custom<Optimizer>((o) => method(o, "step") && method(o, "state"), 'expected "adamw", "sgd" or an Optimizer'),
    ]),
    "adamw",
  ),
  /** Peak learning rate. @default 1e-4 */
  lr: v.optional(notNegative, 1e-4),
  /** Decay rates of AdamW's moments. @default [0.9, 0.999] */
  betas: v.optional(v.tuple([unit, unit])),
  /** AdamW's ε. @default 1e-8 */
  eps: v.optional(notNegative),
  /** Momentum of SGD. @default 0 */
  momentum: v.optional(unit),
  /** Decoupled decay of tensors of two or more dims. @default 0 */
  weightDecay: v.optional(notNegative),
  schedule: v.optional(TrainScheduleOptions, {}),
  /** Optimizer steps in all. Give this or `epochs`. */
  steps: v.optional(count),
  /** Passes over the data. @default 1, without end with `steps` */
  epochs: v.optional(count),
  /** Samples a batch, when `data` is a data set. Give this or `batchTokens`. @default 1 */
  batchSize: v.optional(count),
  /** Most tokens a batch, when `data` is a data set: samples are added while they fit. */
  batchTokens: v.optional(count),
  /** Batches an optimizer step. Gradients are summed and divided once by the tokens of all. @default 1 */
  accumulation: v.optional(count, 1),
  /** Cuts batches between documents into parts of at most this many tokens, to save memory; the result is the same. */
  microBatchTokens: v.optional(count),
  /** Largest global norm of the gradient; 0 = no clipping. @default 1 */
  maxGradNorm: v.optional(notNegative, 1),
  /**
   * The dtype that the model must have: weights and activations; moments, gradients and master weights are always f32. It is set by
   * loading (`loadModel(…, { dtype: "bf16" })`); this checks it. @default the model's own
   */
  precision: v.optional(v.picklist(["f32", "bf16"])),
  /** Recompute activations in the backward pass: less memory, a third more work, the same bits. @default false */
  checkpointing: v.optional(v.boolean(), false),
  /**
   * Record a step once and replay it, as one CUDA graph on a GPU: for small models and batches, where the host cannot keep up with the
   * device. Batches are filled up to the largest so far. Gradients keep their memory between steps; no dropout, and of the objectives
   * only `causalLanguageModel` can. @default false
   */
  replay: v.optional(v.boolean(), false),
  /** Decides dropout, and the data's order when given. @default 0; the data set's own order */
  seed: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(2 ** 32 - 1))),
  /** What to do when a loss or gradient is not finite: end the run, or leave the update out ("skip" waits for every step's gradient). @default "error" */
  onNonFinite: v.optional(v.picklist(["error", "skip"]), "error"),
  /** Steps between lines of progress. @default 10 */
  logEvery: v.optional(count, 10),
  /** "bar" draws on stderr, "json" writes a line every `logEvery` steps to stdout, "auto" takes the bar on a terminal. @default "none" */
  progress: v.optional(v.picklist(["auto", "bar", "json", "none"]), "none"),
  sample: v.optional(TrainSampleOptions),
  checkpoint: v.optional(TrainCheckpointOptions),
  curve: v.optional(TrainCurveOptions),
  evaluation: v.optional(TrainEvaluationOptions),
  /** Folder that the trained model is saved to at the end (`model.save`). Adapters are saved by saveLora instead. */
  output: v.optional(v.pipe(v.string(), v.nonEmpty())),
  /** Called with every report, in order. */
  onReport: v.optional(v.custom<(report: StepReport) => void>((f) => typeof f === "function", "expected a function")),
  /** Ends the run after the step under way; `done` rejects with the signal's reason. */
  signal: v.optional(v.instance(AbortSignal)),
});

type Input = v.InferInput<typeof TrainOptions>;
/** Options of {@link train}; see the schema of the same name for each. */
export type TrainOptions<M extends object = object> = Omit<Input, "model" | "objective"> & {
  model: M;
  objective?: Objective<M>;
};
export type ResolvedTrainOptions = v.InferOutput<typeof TrainOptions>;
