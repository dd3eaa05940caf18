import { OptionsError } from "@llm/core";
import { CreateStudentOptions, DistillOptions } from "@llm/distill";
import { LoadModelOptions } from "@llm/models";
import * as v from "valibot";
import { defineCommand } from "../define-command.js";
import type { TrainConfig } from "../define-config.js";
import { runTraining } from "../training.js";
import { loraGroup, loraSetting, samplePrompts, trainingGroups } from "./train.js";

const text = v.pipe(v.string(), v.nonEmpty());

export const DistillFlags = v.strictObject({
  /** Training data: a file (json, jsonl, csv, txt; also .gz), or organisation/name:file on the hub. Give it once per file. */
  data: v.optional(v.array(text)),
  /** Folder that the student is written to, with the loss curve. */
  output: v.optional(text),
  /** Value that --alpha moves to over the run. */
  alphaTo: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1))),
  /** How --alpha gets to --alpha-to. @default "linear" */
  alphaSchedule: v.optional(v.picklist(["linear", "cosine"])),
  /** Steps after which --alpha has become --alpha-to. @default those of the run */
  alphaSteps: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  /** Train a LoRA adapter of the student instead of all its weights. */
  lora: v.optional(v.boolean()),
  /** Data to measure the loss on that is not trained on. Give it once per file. */
  evaluationData: v.optional(v.array(text)),
  /** Share of the training data's rows kept for evaluation instead. In (0, 1). */
  evaluationFraction: v.optional(v.pipe(v.number(), v.gtValue(0), v.ltValue(1))),
  /** Question that is answered every --sample-every steps, by the chat template. Give it once per question. */
  sampleQuestions: v.optional(v.array(text)),
});

export const distill = defineCommand({
  name: "distill",
  description:
    "Trains a student to follow a teacher with the same vocabulary: alpha · T² · KL + (1 − alpha) · cross-entropy. The student is\na model, or is made from the teacher's architecture (--student-layers …). All flags of `llm train` apply.",
  arguments: [
    { name: "teacher", description: "folder, hub name or PEFT folder", required: true },
    { name: "student", description: "the same; without it, --student-… flags make one" },
  ],
  groups: {
    own: { title: "Options", schema: DistillFlags, docs: "cli.DistillFlags" },
    distill: {
      title: "Distillation",
      schema: DistillOptions,
      docs: "distill.DistillOptions",
      omit: { teacher: "the argument" },
      rename: { kind: "kl" },
    },
    student: {
      title: "New student",
      schema: CreateStudentOptions,
      docs: "distill.CreateStudentOptions",
      prefix: "student",
    },
    lora: loraGroup,
    ...trainingGroups,
    teacherLoad: {
      title: "Loading the teacher",
      schema: LoadModelOptions,
      docs: "models.LoadModelOptions",
      prefix: "teacher",
      omit: { device: "the student's, --device" },
    },
  },
  examples: [
    ["llm distill ./teacher ./student --data train.jsonl --epochs 2 --output ./distilled", "an existing student"],
    [
      "llm distill ./teacher --student-layers 6 --student-init layers --data train.jsonl --output ./distilled",
      "every other layer of the teacher",
    ],
    [
      "llm distill ./teacher ./student --data text.txt --temperature 4 --alpha 0.9 --alpha-to 0.3 --output ./distilled",
      "from the teacher's word to the data's",
    ],
  ],
  async run({
    args,
    values: { own, distill: settings, student, lora, train, dataset, load, save, teacherLoad },
    signal,
    terminal,
  }) {
    const [teacher, model] = args as [string, string?];
    const { alphaTo, alphaSchedule, alphaSteps, lora: on, sampleQuestions, ...rest } = own;
    const sized = Object.keys(student).length > 0;
    if (model !== undefined && sized)
      throw new OptionsError("[llm distill] expected a student or --student-… flags that make one, got both");
    if (alphaTo === undefined && (alphaSchedule !== undefined || alphaSteps !== undefined))
      throw new OptionsError("[llm distill] --alpha-schedule, --alpha-steps: expected --alpha-to with them");
    if (alphaTo !== undefined && typeof settings.alpha !== "number")
      throw new OptionsError("[llm distill] --alpha-to: expected --alpha, where it begins");
    const alpha =
      alphaTo === undefined
        ? {}
        : {
            alpha: {
              from: settings.alpha as number,
              to: alphaTo,
              ...(alphaSchedule === undefined ? {} : { kind: alphaSchedule }),
              ...(alphaSteps === undefined ? {} : { steps: alphaSteps }),
            },
          };
    const chosen = loraSetting(undefined, on, lora);
    const config = {
      ...rest,
      ...(model === undefined ? {} : { model }),
      ...(chosen === undefined ? {} : { lora: chosen }),
      distill: { ...settings, ...alpha, teacher, teacherLoad, ...(sized ? { student } : {}) },
      train: samplePrompts(train, sampleQuestions),
      dataset,
      load,
      save,
    } as TrainConfig;
    await runTraining({ config, preview: undefined, where: "llm distill", signal, terminal });
  },
});
