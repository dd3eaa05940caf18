/** What a run tells about itself. */

/** An answer of the model in training. */
export interface TrainSample {
  prompt: string;
  text: string;
}

/** Loss on data that is not trained on. */
export interface EvaluationReport {
  /** Mean loss over the weights. */
  loss: number;
  /** exp(loss). */
  perplexity: number;
  /** Σ of the weights. */
  weight: number;
}

/** One optimizer step. */
export interface StepReport {
  /** Steps done, from 1. */
  step: number;
  totalSteps: number;
  /** Passes over the data begun, from 0, where the data tells. */
  epoch: number | undefined;
  /** Σ loss / Σ weight over all micro-batches, before the update. NaN when the step had nothing to learn. */
  loss: number;
  /** Learning rate of the update. */
  lr: number;
  /** Norm of the divided gradient before clipping. */
  gradNorm: number;
  /** Tokens read. */
  tokens: number;
  /** Positions with a label. */
  learnedTokens: number;
  /** Over the last half second of training or more; evaluations, samples and checkpoints are left out. */
  tokensPerSecond: number;
  /** Since the run began (in this process). */
  elapsedMs: number;
  etaMs: number;
  /** Held by the native core when the step ended. */
  memoryBytes: number;
  /** The update was left out: nothing to learn, or a gradient that is not finite (`onNonFinite: "skip"`). */
  skipped?: "no-labels" | "non-finite";
  /** The objective's further sums, divided by the weight. */
  metrics?: Record<string, number>;
  samples?: TrainSample[];
  evaluation?: EvaluationReport;
  /** Folder of the checkpoint written after this step. */
  checkpoint?: string;
}

/** The end of a run. */
export interface TrainResult {
  /** Steps done, those before a resumption included. */
  steps: number;
  /** Loss of the last step that this process ran; NaN when it ran none. */
  loss: number;
  /** Tokens that this process read. */
  tokens: number;
  elapsedMs: number;
  /** After the last step, with `evaluation`. */
  evaluation?: EvaluationReport;
  /** The newest checkpoint. */
  checkpoint?: string;
}
