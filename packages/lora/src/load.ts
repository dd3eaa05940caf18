import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  FormatError,
  IoError,
  native,
  noGrad,
  onDevice,
  openSafetensors,
  OptionsError,
  parseOptions,
  type SafetensorsHandle,
  safetensorsDType,
  scope,
  ShapeError,
  type Tensor,
  tensor,
  type TypedArray,
  UnsupportedError,
} from "@llm/core";
import type { CausalLM } from "@llm/models";
import { type AdapterDelta, adapterNames, createDelta, trainedHead } from "./adapters.js";
import { attach } from "./apply.js";
import { adapterModules, type AdapterModule } from "./modules.js";
import { LoadLoraOptions } from "./options.js";
import { configModules, moduleScale, parsePeftConfig, type PeftConfig } from "./peft-config.js";

export const configFile = "adapter_config.json";
export const weightsName = "adapter_model";
export const keyPrefix = "base_model.model.";

interface PlannedModule {
  module: AdapterModule;
  alpha: number;
  /** Keys of A and B in the file. */
  a: string;
  b: string;
}

/**
 * Attaches the adapter of a PEFT folder (adapter_config.json, adapter_model.safetensors). Every tensor of the file must be used and every
 * module that the config names must be there; `rank_pattern`, `alpha_pattern`, `use_rslora` and regular expressions count as in PEFT. An
 * adapter of a fused module (InternLM2 wqkv, Qwen c_attn) is split exactly: its parts share A and take their rows of B. 16-bit files become f32.
 * @returns a model that shares `model`'s weights; adapters that it carries already stay
 * @throws {FormatError} a missing or left-over tensor, or a config that matches nothing in this model
 * @throws {ShapeError} a tensor that does not fit the module or the rank
 * @throws {UnsupportedError} DoRA, biases, embeddings and other features, by name
 * @throws {OptionsError} the adapter's name is taken
 * @see huggingface/peft src/peft/utils/save_and_load.py
 */
export async function loadLora(model: CausalLM, folder: string, options: LoadLoraOptions = {}): Promise<CausalLM> {
  const o = parseOptions(LoadLoraOptions, options, "loadLora");
  if (adapterNames(model).includes(o.name))
    throw new OptionsError(`[loadLora] the model carries an adapter "${o.name}" already; give another name`, {
      name: o.name,
    });
  const handle = openSafetensors(join(folder, `${weightsName}.safetensors`));
  try {
    const config = readConfig(folder);
    const planned = planModules(model, config, handle, join(folder, configFile));
    if (o.trainable && planned.some((p) => p.module.head)) throw trainedHead("loadLora", o.name);
    const deltas = new Map<string, AdapterDelta>();
    const leaf = (t: Tensor): Tensor => {
      const kept = t.keep();
      kept.requiresGrad = o.trainable;
      return kept;
    };
    const makeDeltas = (): void => {
      for (const { module, alpha, a, b } of planned) {
        const sharedA = leaf(readF32(handle, a));
        const wholeB = readF32(handle, b);
        for (const { linear, rows } of module.parts) {
          const partB = leaf(rows ? scope(() => native.gatherRows(wholeB, tensor(rows))) : wholeB);
          deltas.set(
            linear.name,
            createDelta({
              name: o.name,
              a: sharedA,
              b: partB,
              alpha,
              rsLora: config.use_rslora,
              dropoutRate: config.lora_dropout,
              module,
              seed: o.seed,
            }),
          );
        }
        if (module.parts.some((p) => p.rows)) wholeB.dispose();
      }
    };
    onDevice(model.device, () => noGrad(makeDeltas));
    return attach(model, deltas);
  } finally {
    handle.close();
  }
}

function readConfig(folder: string): PeftConfig {
  const file = join(folder, configFile);
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new FormatError(`[loadLora] ${file} is not valid JSON: ${error.message}`, { file }, error);
    throw new IoError(`[loadLora] cannot read ${file}: ${(error as Error).message}`, { file }, error);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new FormatError(`[loadLora] ${file}: expected an object`, { file });
  return parsePeftConfig(json as Record<string, unknown>, file);
}

/** Checks that the folder's adapter fits the model, without reading any numbers. */
export function checkAdapterFolder(model: CausalLM, folder: string): void {
  const handle = openSafetensors(join(folder, `${weightsName}.safetensors`));
  try {
    planModules(model, readConfig(folder), handle, join(folder, configFile));
  } finally {
    handle.close();
  }
}

/** Pairs the config's modules with the file's tensors, and finds every fault before anything is read. */
function planModules(model: CausalLM, config: PeftConfig, handle: SafetensorsHandle, file: string): PlannedModule[] {
  const modules = configModules(adapterModules(model), config, file);
  if (modules.length === 0)
    throw new FormatError(
      `[loadLora] ${file}: target_modules ${JSON.stringify(config.target_modules)} match no linear of this model`,
      { file },
    );
  const used = new Set<string>();
  const planned = modules.map((module): PlannedModule => {
    const { rank, alpha } = moduleScale(config, module.name, file);
    const key = (side: "A" | "B", shape: readonly number[]): string => {
      const name = `${keyPrefix}${module.name}.lora_${side}.weight`;
      const entry = handle.tensors.get(name);
      if (!entry)
        throw new FormatError(
          `[loadLora] ${handle.files[0]} lacks "${name}", which target_modules ask for${hint([...handle.tensors.keys()])}`,
          { name },
        );
      if (entry.shape.length !== 2 || entry.shape.some((n, i) => n !== shape[i])) {
        throw new ShapeError(`[loadLora] "${name}" must be [${shape.join(", ")}], got [${entry.shape.join(", ")}]`, {
          name,
          expected: shape,
          got: entry.shape,
        });
      }
      used.add(name);
      return name;
    };
    return { module, alpha, a: key("A", [rank, module.inFeatures]), b: key("B", [module.outFeatures, rank]) };
  });
  const left = [...handle.tensors.keys()].filter((name) => !used.has(name));
  const unsupported = left.filter((name) =>
    /\.lora_embedding_[AB]|\.lora_magnitude_vector|\.modules_to_save\.|\.lora_[AB]\.bias$|\.token_adapter\./.test(name),
  );
  if (unsupported.length > 0)
    throw new UnsupportedError(
      `[loadLora] adapters of embeddings, DoRA magnitudes, biases and saved modules are not supported: ${some(unsupported)}`,
      { unsupported },
    );
  if (left.length > 0)
    throw new FormatError(
      `[loadLora] ${left.length} tensors of ${handle.files[0]} belong to no module that target_modules name: ${some(left)}${hint(left)}`,
      { left },
    );
  return planned;
}

const some = (names: readonly string[]): string => `${names.slice(0, 4).join(", ")}${names.length > 4 ? " …" : ""}`;

const hint = (names: readonly string[]): string =>
  names.length > 0 && names.every((n) => !n.startsWith(keyPrefix))
    ? `; keys start with "${keyPrefix}", here with "${names[0]!.split(".").slice(0, 3).join(".")}"`
    : "";

const arrays = { f32: Float32Array, f16: Uint16Array, bf16: Uint16Array } as const;

function readF32(handle: SafetensorsHandle, name: string): Tensor {
  const entry = handle.tensors.get(name)!;
  const dtype = safetensorsDType(entry);
  if (dtype !== "f32" && dtype !== "f16" && dtype !== "bf16")
    throw new FormatError(`[loadLora] "${name}" must hold floats, got ${entry.dtype}`, { name });
  const bytes = handle.read(name);
  const bits: TypedArray = new arrays[dtype](bytes.buffer, 0, bytes.byteLength / arrays[dtype].BYTES_PER_ELEMENT);
  if (dtype === "f32") return tensor(bits, entry.shape, "f32", "weights").keep();
  return scope(() => native.cast(tensor(bits, entry.shape, dtype), 0)).keep();
}
