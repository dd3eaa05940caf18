/** adapter_config.json of PEFT: read strictly, written in full. @see huggingface/peft src/peft/tuners/lora/config.py (0.17 to 0.21) */
import { FormatError, UnsupportedError } from "@llm/core";
import * as v from "valibot";
import { adapterModules, type AdapterModule, endsWithName } from "./modules.js";

const count = v.pipe(v.number(), v.integer(), v.minValue(1));
const scaleNumber = v.pipe(v.number(), v.finite());
const names = v.union([v.string(), v.array(v.string())]);

const PeftConfig = v.object({
  peft_type: v.literal("LORA"),
  task_type: v.nullish(v.literal("CAUSAL_LM")),
  r: count,
  lora_alpha: scaleNumber,
  lora_dropout: v.optional(v.pipe(v.number(), v.minValue(0), v.ltValue(1)), 0),
  use_rslora: v.optional(v.boolean(), false),
  target_modules: names,
  exclude_modules: v.nullish(names),
  layers_to_transform: v.nullish(v.union([v.number(), v.array(v.number())])),
  layers_pattern: v.nullish(names),
  rank_pattern: v.nullish(v.record(v.string(), count)),
  alpha_pattern: v.nullish(v.record(v.string(), scaleNumber)),
  init_lora_weights: v.nullish(v.union([v.boolean(), v.string()])),
  bias: v.nullish(v.string()),
});
export type PeftConfig = v.InferOutput<typeof PeftConfig>;

/** Keys that say nothing about the output. */
const harmless = new Set([
  "auto_mapping",
  "base_model_name_or_path",
  "eva_config",
  "inference_mode",
  "loftq_config",
  "megatron_core",
  "peft_version",
  "qalora_group_size",
  "revision",
  "runtime_config",
  "ensure_weight_tying",
]);

/** Initializations that leave the base weights as they are. */
const plainInit = new Set<unknown>([undefined, null, true, false, "gaussian", "eva", "orthogonal", "mica"]);

const isEmpty = (value: unknown): boolean =>
  value === null ||
  value === undefined ||
  value === false ||
  value === "" ||
  (typeof value === "object" && Object.keys(value as object).length === 0);

/**
 * Checks adapter_config.json.
 * @throws {FormatError} a key of the wrong type
 * @throws {UnsupportedError} a feature that changes the output and that we lack (DoRA, biases, saved modules …), by name
 */
export function parsePeftConfig(json: Record<string, unknown>, file: string): PeftConfig {
  const peftType = json["peft_type"];
  if (typeof peftType === "string" && peftType !== "LORA")
    throw new UnsupportedError(`[loadLora] ${file}: peft_type "${peftType}" is not supported, "LORA" is`, { file });
  const result = v.safeParse(PeftConfig, json);
  if (!result.success) {
    const issue = result.issues[0];
    throw new FormatError(`[loadLora] ${file}: ${v.getDotPath(issue) ?? "config"}: ${issue.message}`, {
      file,
      issues: result.issues.map((i) => i.message),
    });
  }
  const config = result.output;
  const unsupported = Object.keys(json).filter(
    (key) => !(key in PeftConfig.entries) && !harmless.has(key) && !isEmpty(json[key]),
  );
  if (config.bias && config.bias !== "none") unsupported.push("bias");
  if (!plainInit.has(config.init_lora_weights)) unsupported.push("init_lora_weights");
  if (unsupported.length > 0) {
    throw new UnsupportedError(
      `[loadLora] ${file}: these change the output and are not supported: ${unsupported.map((k) => `${k} = ${JSON.stringify(json[k])}`).join(", ")}. Merge the adapter into its base with PEFT, or train it without them`,
      { file, unsupported },
    );
  }
  return config;
}

function pattern(source: string, file: string, key: string): RegExp {
  try {
    return new RegExp(source);
  } catch (error) {
    throw new UnsupportedError(
      `[loadLora] ${file}: ${key}: ${JSON.stringify(source)} is not a regular expression that JavaScript reads too`,
      { file },
      error,
    );
  }
}

/** Modules of the model that the config adapts, by PEFT's own rules. */
export function configModules(modules: readonly AdapterModule[], config: PeftConfig, file: string): AdapterModule[] {
  const matches = (given: string | string[], key: string): ((name: string) => boolean) => {
    if (typeof given !== "string") return (name) => given.some((suffix) => endsWithName(name, suffix));
    const whole = pattern(`^(?:${given})$`, file, key);
    return (name) => whole.test(name);
  };
  const { target_modules: target, exclude_modules: exclude, layers_to_transform: layers, layers_pattern } = config;
  const targeted = target === "all-linear" ? undefined : matches(target, "target_modules");
  const excluded = exclude && exclude.length > 0 ? matches(exclude, "exclude_modules") : () => false;
  const wanted = layers === null || layers === undefined ? [] : [layers].flat();
  const prefixes = layers_pattern && layers_pattern.length > 0 ? [layers_pattern].flat() : undefined;
  const layerPatterns = prefixes
    ? prefixes.map((p) => pattern(`^(?:.*?\\.)?(?:${p})\\.(\\d+)\\.`, file, "layers_pattern"))
    : [/^.*?\.[^.]*\.(\d+)\./];
  const inLayers = (name: string): boolean => {
    if (wanted.length === 0) return true;
    const match = layerPatterns.map((p) => p.exec(name)).find(Boolean);
    return match ? wanted.includes(Number(match[1])) : false;
  };
  return modules.filter((m) => (targeted ? targeted(m.name) : !m.head) && !excluded(m.name) && inLayers(m.name));
}

/** Rank and alpha of a module: a pattern's, else the config's. The first pattern that matches the end of the name counts. */
export function moduleScale(config: PeftConfig, name: string, file: string): { rank: number; alpha: number } {
  const find = (patterns: Record<string, number> | null | undefined, key: string): number | undefined =>
    Object.entries(patterns ?? {}).find(([p]) => pattern(`^(?:.*\\.)?(?:${p})$`, file, key).test(name))?.[1];
  return {
    rank: find(config.rank_pattern, "rank_pattern") ?? config.r,
    alpha: find(config.alpha_pattern, "alpha_pattern") ?? config.lora_alpha,
  };
}

/** What adapter_config.json says of one module. */
export interface SavedModule {
  name: string;
  rank: number;
  alpha: number;
}

const commonest = (values: readonly number[]): number => {
  const counts = new Map<number, number>();
  for (const x of values) counts.set(x, (counts.get(x) ?? 0) + 1);
  return [...counts].reduce((best, next) => (next[1] > best[1] ? next : best))[0];
};

/**
 * adapter_config.json of these modules. Target names are the last component where every module of that name is adapted, else full
 * names, so that PEFT adapts exactly the modules that the weights are for.
 */
export function writePeftConfig(
  model: Parameters<typeof adapterModules>[0],
  saved: readonly SavedModule[],
  options: { dropout: number; rsLora: boolean; baseModel: string | null },
): Record<string, unknown> {
  const last = (name: string): string => name.slice(name.lastIndexOf(".") + 1);
  const adapted = new Set(saved.map((m) => m.name));
  const all = adapterModules(model).map((m) => m.name);
  const targets = new Set(
    saved.map(({ name }) =>
      all.every((other) => last(other) !== last(name) || adapted.has(other)) ? last(name) : name,
    ),
  );
  const rank = commonest(saved.map((m) => m.rank));
  const alpha = commonest(saved.map((m) => m.alpha));
  const patternOf = (value: (m: SavedModule) => number, usual: number): Record<string, number> =>
    Object.fromEntries(saved.filter((m) => value(m) !== usual).map((m) => [m.name, value(m)]));
  return {
    alpha_pattern: patternOf((m) => m.alpha, alpha),
    auto_mapping: null,
    base_model_name_or_path: options.baseModel,
    bias: "none",
    corda_config: null,
    eva_config: null,
    exclude_modules: null,
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    layer_replication: null,
    layers_pattern: null,
    layers_to_transform: null,
    loftq_config: {},
    lora_alpha: alpha,
    lora_bias: false,
    lora_dropout: options.dropout,
    megatron_config: null,
    megatron_core: "megatron.core",
    modules_to_save: null,
    peft_type: "LORA",
    qalora_group_size: 16,
    r: rank,
    rank_pattern: patternOf((m) => m.rank, rank),
    revision: null,
    target_modules: [...targets].sort(),
    target_parameters: null,
    task_type: "CAUSAL_LM",
    trainable_token_indices: null,
    use_dora: false,
    use_qalora: false,
    use_rslora: options.rsLora,
  };
}
