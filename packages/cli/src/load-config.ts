/** Reads a training run's config file. */
import { existsSync } from "node:fs";
import { register } from "node:module";
import { extname, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { FormatError, IoError, LlmError, OptionsError } from "@llm/core";
import { dataSourceSchema, loadDatasetSchema } from "@llm/data";
import { LoraOptions } from "@llm/lora";
import { LoadModelOptions, SaveModelOptions } from "@llm/models";
import { TrainOptions } from "@llm/parallel";
import * as v from "valibot";
import type { TrainConfig } from "./define-config.js";
import { distillSettingsSchema } from "./distill-settings.js";

const text = v.pipe(v.string(), v.nonEmpty());
const source = v.union([text, dataSourceSchema]);
const sources = v.union([source, v.pipe(v.array(source), v.minLength(1))]);

/** Shapes and key names; ranges are checked by whoever takes the values, once flags have been added. */
const configSchema = v.strictObject({
  model: v.optional(text),
  load: v.optional(v.partial(LoadModelOptions)),
  data: v.optional(sources),
  dataset: v.optional(v.partial(v.omit(loadDatasetSchema, ["tokenizer"]))),
  evaluationData: v.optional(sources),
  evaluationFraction: v.optional(v.number()),
  lora: v.optional(v.union([v.boolean(), LoraOptions])),
  adapter: v.optional(text),
  quantizeBase: v.optional(v.picklist(["nf4", "fp8"])),
  distill: v.optional(distillSettingsSchema),
  output: v.optional(text),
  save: v.optional(v.partial(v.omit(SaveModelOptions, ["adapters"]))),
  train: v.optional(v.record(v.string(), v.unknown())),
});

/** Keys of train() that have a place of their own in the file, or none. */
const elsewhere = new Map([
  ["model", "the file's own `model`"],
  ["data", "the file's own `data`"],
  ["output", "the file's own `output`"],
  ["signal", "Ctrl-C"],
]);

let registered = false;

/**
 * The default export of a .ts, .mts, .js or .mjs file (a function is called first), checked.
 * @throws {IoError} no such file @throws {FormatError} it cannot be run, or exports no config @throws {OptionsError} unknown or wrong keys
 */
export async function loadConfig(file: string): Promise<TrainConfig> {
  const path = resolve(file);
  const where = "llm train";
  if (![".ts", ".mts", ".js", ".mjs"].includes(extname(path)))
    throw new OptionsError(`[${where}] expected a config file .ts, .mts, .js or .mjs, got ${file}`, { file });
  if (!existsSync(path)) throw new IoError(`[${where}] the config file ${file} does not exist`, { file });
  if (!registered) register("./typescript-worker.js", import.meta.url);
  registered = true;
  let exported: unknown;
  try {
    exported = ((await import(pathToFileURL(path).href)) as { default?: unknown }).default;
    if (typeof exported === "function") exported = await (exported as () => unknown)();
  } catch (error) {
    if (LlmError.isInstance(error)) throw error;
    throw new FormatError(
      `[${where}] cannot run the config file ${file}: ${(error as Error).message}`,
      { file },
      error,
    );
  }
  if (exported === undefined)
    throw new FormatError(
      `[${where}] ${file}: expected \`export default defineConfig({ … })\`, got no default export`,
      { file },
    );
  const result = v.safeParse(configSchema, exported);
  const problems = result.success
    ? []
    : result.issues.map(
        (issue) => `${v.getDotPath(issue) ?? "config"}: ${issue.expected === "never" ? "no such key" : issue.message}`,
      );
  const run = (exported as TrainConfig | null)?.train;
  for (const key of typeof run === "object" && run !== null ? Object.keys(run) : []) {
    const own = elsewhere.get(key);
    if (own !== undefined) problems.push(`train.${key}: set ${own} instead`);
    else if (!(key in TrainOptions.entries))
      problems.push(
        `train.${key}: no such option; train() has ${Object.keys(TrainOptions.entries)
          .filter((name) => !elsewhere.has(name))
          .join(", ")}`,
      );
  }
  if (problems.length > 0) throw new OptionsError(`[${where}] ${file}: ${problems.join("; ")}`, { file });
  // The parsed copy has defaults filled in, which would win over flags; what was written is handed on.
  return exported as TrainConfig;
}
