/** The form of a training run's config file. Types only: importing it loads nothing. */
import type { DataSource, LoadDatasetOptions } from "@llm/data";
import type { LoraOptions } from "@llm/lora";
import type { LoadModelOptions, SaveModelOptions } from "@llm/models";
import type { TrainOptions } from "@llm/parallel";
import type { DistillSettings } from "./distill-settings.js";

type TrainSettings = Omit<TrainOptions, "model" | "data" | "output" | "signal" | "evaluation">;

/** A training run: `llm train file`. Flags win over what is written here; paths count from the current folder. */
export interface TrainConfig {
  /** Folder or hub name of the model; a PEFT folder loads its base. */
  model?: string;
  /** How it is loaded. */
  load?: LoadModelOptions;
  /** Training data: files, or rows with their format and weight. */
  data?: string | DataSource | (string | DataSource)[];
  /** How the data is read: format, template, maxTokens, packing … */
  dataset?: Omit<LoadDatasetOptions, "tokenizer">;
  /** Data that is not trained on, for `train.evaluation`. */
  evaluationData?: string | DataSource | (string | DataSource)[];
  /** Share of the training data's rows that is kept for evaluation instead. In (0, 1). */
  evaluationFraction?: number;
  /** Train a LoRA adapter: true, or its options. Absent or false: all weights. */
  lora?: boolean | LoraOptions;
  /** PEFT folder of an adapter to go on training. */
  adapter?: string;
  /**
   * Keep the frozen base quantized while an adapter trains on it: "nf4" in 4-bit NormalFloat with double quantization (QLoRA, the least memory),
   * "fp8" in 8-bit floats (the fastest on Hopper GPUs). Absent: as loaded.
   */
  quantizeBase?: "nf4" | "fp8";
  /** Follow a teacher instead of the labels alone. */
  distill?: DistillSettings;
  /** Folder that the adapter or the model is written to. */
  output?: string;
  /** How a whole model is written. */
  save?: Omit<SaveModelOptions, "adapters">;
  /** Everything about the run itself: lr, steps or epochs, schedule, batches, checkpoints … */
  train?: TrainSettings & { evaluation?: Omit<NonNullable<TrainOptions["evaluation"]>, "data"> };
}

/**
 * Describes a training run, with its types checked by the editor: the default export of the file that `llm train` is given.
 *
 * ```ts
 * import { defineConfig } from "@llm/cli";
 *
 * export default defineConfig({
 *   model: "./Qwen2.5-0.5B",
 *   data: { path: "./train.jsonl", format: "sharegpt" },
 *   lora: { rank: 16 },
 *   train: { epochs: 3, lr: 2e-4, schedule: { warmupRatio: 0.03 } },
 *   output: "./adapter",
 * });
 * ```
 */
export function defineConfig(config: TrainConfig): TrainConfig {
  return config;
}
