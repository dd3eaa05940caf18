import { OptionsError } from "@llm/core";
import { loadDatasetSchema } from "@llm/data";
import { LoraOptions } from "@llm/lora";
import { LoadModelOptions, SaveModelOptions } from "@llm/models";
import { TrainOptions } from "@llm/parallel";
import * as v from "valibot";
import { defineCommand, type FlagGroups } from "../define-command.js";
import type { TrainConfig } from "../define-config.js";
import { loadConfig } from "../load-config.js";
import { mergeSettings, runTraining } from "../training.js";

type TrainSettings = Partial<v.InferInput<typeof TrainOptions>>;

const text = v.pipe(v.string(), v.nonEmpty());

export const TrainFlags = v.strictObject({
  /** Folder or hub name of the model; a PEFT folder loads its base. */
  model: v.optional(text),
  /** Training data: a file (json, jsonl, csv, txt; also .gz), or organisation/name:file on the hub. Give it once per file. */
  data: v.optional(v.array(text)),
  /** Folder that the adapter or model is written to, with the loss curve. */
  output: v.optional(text),
  /** Train a LoRA adapter instead of all weights; every --lora-… flag implies it. */
  lora: v.optional(v.boolean()),
  /** PEFT folder of an adapter to go on training. */
  adapter: v.optional(text),
  /** Keep the frozen base in fewer bits while the adapter trains: nf4 is QLoRA, fp8 is the fastest on Hopper GPUs. */
  quantizeBase: v.optional(v.picklist(["nf4", "fp8"])),
  /** Data to measure the loss on that is not trained on. Give it once per file. */
  evaluationData: v.optional(v.array(text)),
  /** Share of the training data's rows kept for evaluation instead. In (0, 1). */
  evaluationFraction: v.optional(v.pipe(v.number(), v.gtValue(0), v.ltValue(1))),
  /** Question that is answered every --sample-every steps, by the chat template. Give it once per question. */
  sampleQuestions: v.optional(v.array(text)),
  /** Show what would be learned of this many samples, and end. */
  preview: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
});

/** Flags of everything that trains. */
export const trainingGroups = {
  train: {
    title: "Training",
    schema: TrainOptions,
    docs: "parallel.TrainOptions",
    omit: {
      model: "--model",
      data: "--data",
      output: "--output",
      objective: "a function; in a config file",
      "evaluation.data": "--evaluation-data",
      onReport: "a function; in a config file",
      signal: "Ctrl-C",
    },
    rename: { "checkpoint.resume": "resume" },
    defaults: {
      progress: '"auto"',
      "checkpoint.folder": "checkpoints in the output folder",
      "curve.svg": "loss.svg in the output folder",
      "curve.jsonl": "loss.jsonl in the output folder",
      "evaluation.batchTokens": "as many as --max-tokens",
    },
  },
  dataset: {
    title: "Data",
    schema: loadDatasetSchema,
    docs: "data.loadDatasetSchema",
    omit: { tokenizer: "the model's own" },
    rename: { seed: "data-seed" },
  },
  load: { title: "Loading", schema: LoadModelOptions, docs: "models.LoadModelOptions" },
  save: {
    title: "Saving",
    schema: SaveModelOptions,
    docs: "models.SaveModelOptions",
    omit: { adapters: "adapters are saved as a PEFT folder" },
    rename: { dtype: "save-dtype" },
  },
} as const satisfies FlagGroups;

/** The LoRA flags. */
export const loraGroup = {
  title: "LoRA",
  schema: LoraOptions,
  docs: "lora.LoraOptions",
  prefix: "lora",
  commas: ["targets"],
} as const satisfies FlagGroups[string];

/** What the flags make of the file's `lora`: options are merged, `--lora` keeps the file's, `--no-lora` drops them. */
export function loraSetting(
  file: TrainConfig["lora"],
  on: boolean | undefined,
  flags: LoraOptions,
): TrainConfig["lora"] {
  const given = Object.keys(flags).length > 0;
  if (given && on === false) throw new OptionsError("[llm] expected --no-lora or --lora-… flags, got both");
  const written = typeof file === "object" ? file : {};
  if (given) return { ...written, ...flags };
  if (on === undefined) return file;
  return on && typeof file === "object" ? file : on;
}

/** Adds questions to what is sampled while training. */
export function samplePrompts(options: TrainSettings, questions: readonly string[] = []): TrainSettings {
  const prompts = [
    ...(options.sample?.prompts ?? []),
    ...questions.map((content) => ({ messages: [{ role: "user", content }] })),
  ];
  return prompts.length === 0
    ? options
    : { ...options, sample: { ...options.sample, prompts } as TrainSettings["sample"] };
}

export const train = defineCommand({
  name: "train",
  description:
    "Fine-tunes a model on conversations or text: all weights, or a LoRA adapter. What to do is in a TypeScript or JavaScript\nconfig file (export default defineConfig({ … })), in flags, or both: flags win.",
  arguments: [{ name: "config", description: "config file" }],
  groups: { own: { title: "Options", schema: TrainFlags, docs: "cli.TrainFlags" }, lora: loraGroup, ...trainingGroups },
  examples: [
    ["llm train train.config.ts --lr 1e-4 --steps 100", "a config file, two things changed"],
    [
      "llm train --model ./model --data train.jsonl --format alpaca --lora-rank 16 --epochs 3 --output ./adapter",
      "LoRA; with --quantize-base nf4 and --checkpointing, QLoRA",
    ],
    [
      "llm train --model ./model --data text.txt --batch-tokens 4096 --checkpoint-every 500 --resume --output ./tuned",
      "all weights; goes on where it stopped",
    ],
  ],
  async run({ args, values: { own, lora, train: options, dataset, load, save }, signal, terminal }) {
    const config = args[0] === undefined ? {} : await loadConfig(args[0]);
    const { preview, lora: on, sampleQuestions, ...settings } = own;
    const merged = mergeSettings<TrainConfig>(config, {
      ...settings,
      train: samplePrompts(options, sampleQuestions),
      dataset,
      load,
      save,
    } as TrainConfig);
    const chosen = loraSetting(config.lora, on, lora);
    await runTraining({
      config: { ...merged, ...(chosen === undefined ? {} : { lora: chosen }) },
      preview,
      where: "llm train",
      signal,
      terminal,
    });
  },
});
