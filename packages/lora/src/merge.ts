import {
  fuseLinears,
  type Linear,
  type LinearDelta,
  type LinearGroup,
  noGrad,
  parseOptions,
  UnsupportedError,
} from "@llm/core";
import type { CausalLM } from "@llm/models";
import { checkNames } from "./adapters.js";
import { MergeLoraOptions } from "./options.js";

/**
 * A plain model whose weights are W + Σ s · B·A: summed in f32, rounded once to the weight's dtype. The tensors of adapted linears (and of
 * the q, k, v or gate, up that share a buffer with one) are new, all others are shared with `model`, which is not changed. The result
 * carries no adapters and can be saved; `model.save(folder, { adapters: "merge" })` writes the same files one tensor at a time, without
 * the merged model in memory.
 * @throws {UnsupportedError} an adapted linear is quantized and `base` is not "dequantized"
 * @throws {OptionsError} a name that the model does not carry
 * @see Hu et al. 2021, arXiv:2106.09685, section 4.1
 */
export function mergeLora(model: CausalLM, options: MergeLoraOptions = {}): CausalLM {
  const o = parseOptions(MergeLoraOptions, options, "mergeLora");
  if (o.adapters) checkNames(model, o.adapters, "mergeLora");
  const chosen = (l: Linear): LinearDelta[] =>
    l.deltas.filter((d) => (o.adapters ? o.adapters.includes(d.name) : d.active !== false));
  const dequantize = o.base === "dequantized";
  const quantized = model.decoder.linears().filter((l) => l.storage.kind !== "dense");
  const obstacle = quantized.find((l) => chosen(l).length > 0);
  if (obstacle && !dequantize) {
    throw new UnsupportedError(
      `[mergeLora] ${obstacle.name} is stored as ${obstacle.storage.kind}: quantizing the sum again would change the model. { base: "dequantized" } merges into dense weights; or serve the adapter beside the base`,
      { name: obstacle.name },
    );
  }
  const change = (l: Linear): Linear => {
    const deltas = chosen(l);
    const dense = l.storage.kind === "dense";
    if (deltas.length === 0 && (dense || !dequantize)) return l.deltas.length > 0 ? l.with({ deltas: [] }) : l;
    const dtype = l.storage.kind === "dense" ? l.storage.weight.dtype : model.dtype;
    return l.with({ deltas: [], storage: { kind: "dense", weight: l.mergedWeight(dtype, deltas).keep() } });
  };
  const group = (g: LinearGroup): LinearGroup => {
    const linears = new Map(g.linears.map((l) => [l, change(l)]));
    const fresh = [...linears].filter(([before, after]) => before.storage !== after.storage).map(([, after]) => after);
    if (fresh.length === 0) return g.map((l) => linears.get(l)!);
    const fused = fuseLinears([...linears.values()]);
    // The group's buffer holds copies now.
    if (fused.fused) for (const l of fresh) if (l.storage.kind === "dense") l.storage.weight.dispose();
    return fused;
  };
  const merged = noGrad(() => model.decoder.mapLinears(change, group));
  const { quantization_config: quantization, ...plain } = model.config;
  const keepsQuantized = merged.linears().some((l) => l.storage.kind !== "dense");
  return model.withDecoder(merged, keepsQuantized && quantization !== undefined ? model.config : plain);
}
