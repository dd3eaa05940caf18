/** The commands' names and one line about each: all that `llm --help` loads. */
import type { CommandDefinition, FlagGroups } from "./define-command.js";

/** Exit codes of `llm`. */
export const exitCodes = { ok: 0, failure: 1, usage: 2, interrupted: 130 } as const;

export interface CommandEntry {
  name: string;
  summary: string;
  /** Loads the command with its flags; no native code. */
  load(): Promise<CommandDefinition<FlagGroups>>;
}

export const commandList: readonly CommandEntry[] = [
  {
    name: "pull",
    summary: "download a model or data set from a hub",
    load: async () => (await import("./commands/pull.js")).pull,
  },
  {
    name: "train",
    summary: "fine-tune a model: all weights, or LoRA",
    load: async () => (await import("./commands/train.js")).train,
  },
  {
    name: "merge",
    summary: "add a LoRA adapter to its base and save the whole model",
    load: async () => (await import("./commands/merge.js")).merge,
  },
  {
    name: "quantize",
    summary: "shrink the weights to 4 bits (AWQ, round-to-nearest)",
    load: async () => (await import("./commands/quantize.js")).quantize,
  },
  {
    name: "distill",
    summary: "train a student to follow a teacher",
    load: async () => (await import("./commands/distill.js")).distill,
  },
  {
    name: "serve",
    summary: "serve models over the OpenAI API",
    load: async () => (await import("./commands/serve.js")).serve,
  },
  {
    name: "chat",
    summary: "talk to a local model",
    load: async () => (await import("./commands/chat.js")).chat,
  },
  {
    name: "client",
    summary: "talk to a served model",
    load: async () => (await import("./commands/client.js")).client,
  },
  {
    name: "eval",
    summary: "ask models the same tasks and compare the scores",
    load: async () => (await import("./commands/eval.js")).evaluation,
  },
  {
    name: "doctor",
    summary: "say what this machine offers and what is missing",
    load: async () => (await import("./commands/doctor.js")).doctor,
  },
  {
    name: "top",
    summary: "show the GPUs and what runs on them, live",
    load: async () => (await import("./commands/top.js")).top,
  },
  {
    name: "bench",
    summary: "measure this machine beside our recorded numbers",
    load: async () => (await import("./commands/bench.js")).bench,
  },
];
