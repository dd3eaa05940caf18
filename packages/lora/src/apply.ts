import { full, noGrad, onDevice, OptionsError, parseOptions, randomUniform } from "@llm/core";
import type { CausalLM } from "@llm/models";
import { type AdapterDelta, adapterNames, createDelta, trainedHead } from "./adapters.js";
import { adapterModules, type AdapterModule, endsWithName, partModules } from "./modules.js";
import { LoraOptions } from "./options.js";

/**
 * A model that shares `model`'s weights and adds a trainable low-rank update to linears: y = W x + s · B (A · dropout(x)), with
 * A [r, C] uniform in ±1/√C (Kaiming, a = √5), B [N, r] zero, both f32, and s = alpha / r (alpha / √r with rsLora). A new adapter
 * therefore leaves the output as it is. 16-bit models compute the update in 16 bits from the f32 masters.
 *
 * `requiresGrad` is set on A and B and cleared on every weight of the base (a flag of tensors that both models share; values and
 * outputs of `model` stay). Adapters that are attached already stay, active and trainable as they were: their updates add up.
 * @throws {OptionsError} a target that matches nothing (the message lists the linears), or a name that is taken
 * @throws {UnsupportedError} the output head among the targets
 * @see Hu et al. 2021, arXiv:2106.09685, section 4.1; Kalajdzievski 2023 (rsLoRA), arXiv:2312.03732, eq. 5
 */
export function applyLora(model: CausalLM, options: LoraOptions = {}): CausalLM {
  const o = parseOptions(LoraOptions, options, "applyLora");
  if (adapterNames(model).includes(o.name)) {
    throw new OptionsError(`[applyLora] the model carries an adapter "${o.name}" already; give another name`, {
      name: o.name,
    });
  }
  const rank = o.rank;
  const alpha = o.alpha ?? 2 * rank;
  const modules = targetModules(model, o.targets);
  if (modules.some((m) => m.head)) throw trainedHead("applyLora", o.name);

  for (const [, tensor] of model.decoder.namedTensors()) tensor.requiresGrad = false;
  for (const { tensor } of model.decoder.trainable()) tensor.requiresGrad = false;
  const deltas = new Map<string, AdapterDelta>();
  const makeDeltas = (): void => {
    for (const module of modules) {
      const bound = 1 / Math.sqrt(module.inFeatures);
      const a = randomUniform([rank, module.inFeatures], {
        low: -bound,
        high: bound,
        seed: o.seed,
        stream: module.index,
        tag: "weights",
      }).keep();
      a.requiresGrad = true;
      for (const { linear } of module.parts) {
        const b = full([linear.outFeatures, rank], 0, "f32", "weights").keep();
        b.requiresGrad = true;
        deltas.set(
          linear.name,
          createDelta({ name: o.name, a, b, alpha, rsLora: o.rsLora, dropoutRate: o.dropout, module, seed: o.seed }),
        );
      }
    }
  };
  onDevice(model.device, () => noGrad(makeDeltas));
  return attach(model, deltas);
}

/** A model with one more delta on each named linear. */
export function attach(model: CausalLM, deltas: ReadonlyMap<string, AdapterDelta>): CausalLM {
  return model.mapLinears((linear) => {
    const delta = deltas.get(linear.name);
    return delta ? linear.with({ deltas: [...linear.deltas, delta] }) : linear;
  });
}

/** Modules that targets choose; a part of a fused module only where the whole was not chosen. */
function targetModules(model: CausalLM, targets: "all-linear" | readonly string[] | RegExp): AdapterModule[] {
  const whole = adapterModules(model);
  if (targets === "all-linear") return whole.filter((m) => !m.head);
  const all = [...whole, ...partModules(whole)];
  const regExp = targets instanceof RegExp ? new RegExp(targets.source, targets.flags.replace(/[gy]/g, "")) : undefined;
  const patterns = regExp ? [regExp] : (targets as readonly string[]);
  const chosen = new Set<AdapterModule>();
  for (const pattern of patterns) {
    const found = all.filter((m) =>
      typeof pattern === "string" ? endsWithName(m.name, pattern) : pattern.test(m.name),
    );
    if (found.length === 0)
      throw new OptionsError(`[applyLora] targets: ${String(pattern)} matches no linear; there are ${kindsOf(all)}`, {
        target: String(pattern),
        linears: all.map((m) => m.name),
      });
    for (const m of found) chosen.add(m);
  }
  const taken = new Set(
    [...chosen].filter((m) => m.parts.length > 1).flatMap((m) => m.parts.map((p) => p.linear.name)),
  );
  return all.filter((m) => chosen.has(m) && (m.parts.length > 1 || !taken.has(m.name)));
}

/** Names without what repeats by layer: "model.layers.*.self_attn.q_proj, …". */
function kindsOf(modules: readonly AdapterModule[]): string {
  return [...new Set(modules.map((m) => m.name.replace(/\.\d+\./g, ".*.")))].join(", ");
}
