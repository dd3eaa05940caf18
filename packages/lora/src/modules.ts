/**
 * What adapters attach to. A module is what PEFT adapts: a linear under its checkpoint name, or a checkpoint tensor that holds several
 * linears' rows (InternLM2 wqkv, Qwen c_attn). Shapes: C in features, N out features.
 */
import type { Linear } from "@llm/core";
import type { CausalLM } from "@llm/models";

/** One linear of a module and the rows of the module's output that it makes. */
export interface ModulePart {
  linear: Linear;
  /** Row numbers in the module's [N, C]; absent = all of them in order. */
  rows?: Int32Array;
}

/** A linear as checkpoints and PEFT name it. */
export interface AdapterModule {
  /** Hugging Face name, e.g. "model.layers.0.self_attn.q_proj". */
  name: string;
  parts: readonly ModulePart[];
  outFeatures: number;
  inFeatures: number;
  /** The output projection. */
  head: boolean;
  /** Place in the model: equal for equal architectures, whatever is adapted. Random streams use it. */
  index: number;
}

/** Modules of a model in order: blocks first, the untied head last. */
export function adapterModules(model: CausalLM): AdapterModule[] {
  const { decoder, definition, spec } = model;
  const modules: AdapterModule[] = [];
  const single = (linear: Linear, head: boolean): void => {
    const { name, outFeatures, inFeatures } = linear;
    modules.push({ name, parts: [{ linear }], outFeatures, inFeatures, head, index: modules.length });
  };
  for (const [i, block] of decoder.blocks.entries()) {
    const linears = block.linears();
    const byName = new Map(linears.map((l) => [l.name, l]));
    const inFused = new Set<string>();
    for (const f of definition.fused?.(spec, i) ?? []) {
      const parts = f.parts.map((p) => ({ linear: byName.get(p.linear)!, rows: p.rows }));
      for (const p of f.parts) inFused.add(p.linear);
      const outFeatures = parts.reduce((n, p) => n + p.rows.length, 0);
      modules.push({
        name: f.name,
        parts,
        outFeatures,
        inFeatures: parts[0]!.linear.inFeatures,
        head: false,
        index: modules.length,
      });
    }
    for (const linear of linears) if (!inFused.has(linear.name)) single(linear, false);
  }
  if (decoder.head) single(decoder.head, true);
  return modules;
}

/** The parts of fused modules, each as a module of its own: for targets that name q_proj where the checkpoint has wqkv. */
export function partModules(modules: readonly AdapterModule[]): AdapterModule[] {
  let index = modules.length;
  return modules
    .filter((m) => m.parts.length > 1)
    .flatMap((m) =>
      m.parts.map(({ linear }) => {
        const { name, outFeatures, inFeatures } = linear;
        return { name, parts: [{ linear }], outFeatures, inFeatures, head: false, index: index++ };
      }),
    );
}

/** Whether a name ends with `suffix` at a dot, or is it: how PEFT reads a list of target modules. */
export const endsWithName = (name: string, suffix: string): boolean => name === suffix || name.endsWith(`.${suffix}`);
