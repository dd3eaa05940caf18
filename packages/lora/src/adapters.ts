/** The adapters that a model carries. r rank, C in features, N out features. */
import {
  dropout,
  type LinearDelta,
  type LoraDelta,
  type NamedTensor,
  OptionsError,
  randomStep,
  type Tensor,
  trainingForward,
  UnsupportedError,
} from "@llm/core";
import type { CausalLM } from "@llm/models";
import type { AdapterModule } from "./modules.js";

/** A low-rank update with what a PEFT folder says about it. */
export interface AdapterDelta extends LoraDelta {
  alpha: number;
  /** scale = alpha / √r instead of alpha / r. */
  rsLora: boolean;
  /** Probability of dropping while training. */
  dropoutRate: number;
  /** The module that it adapts; several linears with one module share A. */
  module: string;
}

export const scaleOf = (alpha: number, rank: number, rsLora: boolean): number =>
  alpha / (rsLora ? Math.sqrt(rank) : rank);

/** Streams of dropout start here, away from those of the initial values. */
const dropoutSeed = 2 ** 40;
const maxModules = 2 ** 16;

export interface DeltaInit {
  name: string;
  a: Tensor;
  b: Tensor;
  alpha: number;
  rsLora: boolean;
  dropoutRate: number;
  module: AdapterModule;
  seed: number;
}

/** An adapter of one linear; parts of one module get the same dropout mask. */
export function createDelta(init: DeltaInit): AdapterDelta {
  const { name, a, b, alpha, rsLora, dropoutRate, module, seed } = init;
  const base = {
    kind: "lora" as const,
    name,
    a,
    b,
    scale: scaleOf(alpha, a.dim(0), rsLora),
    alpha,
    rsLora,
    dropoutRate,
    module: module.name,
  };
  if (dropoutRate === 0) return base;
  if (module.index >= maxModules)
    throw new UnsupportedError(`[lora] dropout takes models of at most ${maxModules} linears`);
  return {
    ...base,
    dropout: (x) =>
      trainingForward() ? dropout(x, dropoutRate, dropoutSeed + seed, randomStep() * maxModules + module.index) : x,
  };
}

const isAdapter = (d: LinearDelta): d is AdapterDelta =>
  d.kind === "lora" && typeof (d as AdapterDelta).module === "string";

/** The deltas of a linear that this package made. */
export const adapterDeltas = (deltas: readonly LinearDelta[]): AdapterDelta[] => deltas.filter(isAdapter);

/** Names of the adapters that a model carries, in the order in which they were attached. */
export function adapterNames(model: CausalLM): string[] {
  return [...new Set(model.decoder.linears().flatMap((l) => l.deltas.map((d) => d.name)))];
}

/** @throws {OptionsError} a name that the model does not carry */
export function checkNames(model: CausalLM, names: readonly string[], where: string): void {
  const known = adapterNames(model);
  for (const name of names) {
    if (!known.includes(name)) {
      throw new OptionsError(
        `[${where}] no adapter "${name}" in this model; it carries ${known.length > 0 ? known.map((n) => `"${n}"`).join(", ") : "none"}`,
        { name, known },
      );
    }
  }
}

/**
 * The tensors of a model's adapters, each once, under PEFT's names: "model.layers.0.self_attn.q_proj.lora_A.default.weight" [r, C] and
 * "….lora_B.default.weight" [N, r], f32. What an optimizer for LoRA training takes.
 * @param names  which adapters; default all
 * @throws {OptionsError} a name that the model does not carry
 */
export function adapterParameters(model: CausalLM, names?: readonly string[]): NamedTensor[] {
  if (names) checkNames(model, names, "adapterParameters");
  const seen = new Set<Tensor>();
  const list: NamedTensor[] = [];
  for (const linear of model.decoder.linears()) {
    for (const delta of linear.deltas) {
      if (names && !names.includes(delta.name)) continue;
      const shared = adapterDeltas([delta])[0]?.module ?? linear.name;
      for (const [tensor, name] of [
        [delta.a, `${shared}.lora_A.${delta.name}.weight`],
        [delta.b, `${linear.name}.lora_B.${delta.name}.weight`],
      ] as const) {
        if (seen.has(tensor)) continue;
        seen.add(tensor);
        list.push({ name, tensor });
      }
    }
  }
  return list;
}

/**
 * A model in which exactly these adapters take part in the output, their updates summed; the others stay attached and silent. Weights
 * and adapters are shared with `model`, which is not changed.
 * @param names  [] = the base model's output
 * @throws {OptionsError} a name that the model does not carry
 */
export function withAdapters(model: CausalLM, names: readonly string[]): CausalLM {
  checkNames(model, names, "withAdapters");
  return model.mapLinears((linear) =>
    linear.deltas.length === 0
      ? linear
      : linear.with({ deltas: linear.deltas.map((d) => ({ ...d, active: names.includes(d.name) })) }),
  );
}

/**
 * A model without these adapters; weights are shared with `model`, which is not changed.
 * @param names  default all
 * @throws {OptionsError} a name that the model does not carry
 */
export function withoutAdapters(model: CausalLM, names: readonly string[] = adapterNames(model)): CausalLM {
  checkNames(model, names, "withoutAdapters");
  return model.mapLinears((linear) =>
    linear.deltas.length === 0 ? linear : linear.with({ deltas: linear.deltas.filter((d) => !names.includes(d.name)) }),
  );
}

/**
 * Makes exactly these adapters trainable and freezes the others: sets `requiresGrad` of their tensors, which every model that shares
 * them sees.
 * @param names  [] = all frozen
 * @throws {OptionsError} a name that the model does not carry
 * @throws {UnsupportedError} an adapter on the output head: the fused losses give it no gradient
 */
export function setTrainableAdapters(model: CausalLM, names: readonly string[]): void {
  checkNames(model, names, "setTrainableAdapters");
  const head = model.decoder.head?.deltas.find((d) => names.includes(d.name));
  if (head) throw trainedHead("setTrainableAdapters", head.name);
  for (const linear of model.decoder.linears()) {
    for (const delta of linear.deltas) delta.a.requiresGrad = delta.b.requiresGrad = names.includes(delta.name);
  }
}

export const trainedHead = (where: string, name: string): UnsupportedError =>
  new UnsupportedError(
    `[${where}] adapter "${name}" is on the output head, which cannot be trained: the fused losses give it no gradient. Leave the head out of the targets`,
    { name },
  );
