import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  IoError,
  type Linear,
  OptionsError,
  parseOptions,
  type SafetensorsSource,
  type Tensor,
  writeSafetensors,
} from "@llm/core";
import type { CausalLM } from "@llm/models";
import { type AdapterDelta, adapterDeltas, adapterNames, checkNames, scaleOf } from "./adapters.js";
import { checkAdapterFolder, configFile, keyPrefix, weightsName } from "./load.js";
import { adapterModules, type AdapterModule } from "./modules.js";
import { SaveLoraOptions } from "./options.js";
import { type SavedModule, writePeftConfig } from "./peft-config.js";

/** One module's tensors as the file holds them. */
interface JoinedModule extends SavedModule {
  rsLora: boolean;
  dropout: number;
  outFeatures: number;
  inFeatures: number;
  a: () => Promise<Float32Array>;
  b: () => Promise<Float32Array>;
}

/**
 * Writes one adapter as a PEFT folder: adapter_config.json and adapter_model.safetensors (f32), which PEFT, vLLM and loadLora read.
 * Written under temporary names and renamed, the config last; then the folder is checked with loadLora's own rules.
 *
 * Where the checkpoint stores q, k and v in one tensor (InternLM2, Qwen 1) the file holds one adapter of that tensor. Parts that share A
 * (targets "all-linear", "wqkv", "c_attn", or a folder that was loaded) are saved as they are; parts with an A each are joined exactly by
 * stacking ranks: A = [A_q; A_k; A_v], B block by block, alpha scaled so that alpha / rank stays.
 * @throws {OptionsError} no adapter, or several and no `adapter` chosen
 * @throws {IoError} the folder cannot be written
 */
export async function saveLora(model: CausalLM, folder: string, options: SaveLoraOptions = {}): Promise<void> {
  const o = parseOptions(SaveLoraOptions, options, "saveLora");
  const names = adapterNames(model);
  const name = o.adapter ?? names[0];
  if (name === undefined) throw new OptionsError("[saveLora] the model carries no adapter; applyLora makes one");
  if (o.adapter === undefined && names.length > 1)
    throw new OptionsError(
      `[saveLora] the model carries ${names.map((n) => `"${n}"`).join(", ")}; say which: { adapter: "${name}" }`,
      { names },
    );
  checkNames(model, [name], "saveLora");

  const modules = adapterModules(model)
    .map((m) => joinModule(m, name))
    .filter((m): m is JoinedModule => m !== undefined);
  const { rsLora, dropout } = modules[0]!;
  const config = writePeftConfig(model, modules, { rsLora, dropout, baseModel: o.baseModel ?? model.path ?? null });

  const path = join(folder, configFile);
  const temporary = `${path}.tmp-${process.pid}`;
  try {
    await mkdir(folder, { recursive: true });
    await writeFile(temporary, `${JSON.stringify(config, null, 2)}\n`);
    await writeSafetensors(folder, modules.flatMap(sources), {
      baseName: weightsName,
      maxShardBytes: Number.MAX_SAFE_INTEGER,
      metadata: { format: "pt" },
    });
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new IoError(`[saveLora] cannot write ${folder}: ${(error as Error).message}`, { file: folder }, error);
  }
  checkAdapterFolder(model, folder);
}

function sources(m: JoinedModule): SafetensorsSource[] {
  const source = (side: "A" | "B", shape: number[], data: () => Promise<Float32Array>): SafetensorsSource => ({
    name: `${keyPrefix}${m.name}.lora_${side}.weight`,
    dtype: "f32",
    shape,
    byteLength: 4 * shape[0]! * shape[1]!,
    bytes: async () => {
      const values = await data();
      return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    },
  });
  return [source("A", [m.rank, m.inFeatures], m.a), source("B", [m.outFeatures, m.rank], m.b)];
}

/** The adapter's delta of a linear; one of another maker is described by its scale. */
function deltaOf(linear: Linear, name: string): AdapterDelta | undefined {
  const delta = linear.deltas.find((d) => d.name === name);
  if (!delta) return undefined;
  return (
    adapterDeltas([delta])[0] ?? {
      ...delta,
      alpha: delta.scale * delta.a.dim(0),
      rsLora: false,
      dropoutRate: 0,
      module: linear.name,
    }
  );
}

const floats = async (t: Tensor): Promise<Float32Array> => (await t.data()) as Float32Array;

/** What the file holds of a module; undefined when the adapter is not on it. */
function joinModule(module: AdapterModule, name: string): JoinedModule | undefined {
  const parts = module.parts.flatMap(({ linear, rows }) => {
    const delta = deltaOf(linear, name);
    return delta ? [{ delta, rows }] : [];
  });
  const first = parts[0]?.delta;
  if (!first) return undefined;
  const common = {
    name: module.name,
    rsLora: first.rsLora,
    dropout: first.dropoutRate,
    outFeatures: module.outFeatures,
    inFeatures: module.inFeatures,
  };
  if (module.parts.length === 1)
    return { ...common, rank: first.a.dim(0), alpha: first.alpha, a: () => floats(first.a), b: () => floats(first.b) };

  const shared =
    parts.length === module.parts.length && parts.every((p) => p.delta.a === first.a && p.delta.alpha === first.alpha);
  const rank = shared ? first.a.dim(0) : parts.reduce((n, p) => n + p.delta.a.dim(0), 0);
  return {
    ...common,
    rank,
    alpha: shared ? first.alpha : first.scale * scaleOf(1, rank, first.rsLora) ** -1,
    a: async () => {
      if (shared) return floats(first.a);
      const joined = new Float32Array(rank * module.inFeatures);
      let at = 0;
      for (const { delta } of parts) {
        joined.set(await floats(delta.a), at);
        at += delta.a.size;
      }
      return joined;
    },
    b: async () => {
      const joined = new Float32Array(module.outFeatures * rank);
      let column = 0;
      for (const { delta, rows } of parts) {
        const values = await floats(delta.b);
        const width = delta.a.dim(0);
        const factor = delta.scale / first.scale;
        rows!.forEach((row, i) => {
          for (let j = 0; j < width; j++) joined[row * rank + column + j] = values[i * width + j]! * factor;
        });
        if (!shared) column += width;
      }
      return joined;
    },
  };
}
