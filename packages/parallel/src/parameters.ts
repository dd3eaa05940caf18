/** Which tensors of a model a run trains. */
import { type NamedTensor, OptionsError, type Tensor, UnsupportedError } from "@llm/core";
import type { Decoder } from "@llm/models";

/** "adapters": the LoRA tensors; "all": every dense weight; or a list of tensors. */
export type ParameterChoice = "adapters" | "all" | readonly NamedTensor[];

/** Tensors of the active adapters, each once (several linears may share one), named `<linear>.lora_A.<adapter>.weight` and `<linear>.lora_B.<adapter>.weight`. */
export function adapterTensors(decoder: Decoder): NamedTensor[] {
  const names = new Map<Tensor, string>();
  for (const l of decoder.linears()) {
    for (const d of l.deltas) {
      if (d.active === false) continue;
      if (!names.has(d.a)) names.set(d.a, `${l.name}.lora_A.${d.name}.weight`);
      if (!names.has(d.b)) names.set(d.b, `${l.name}.lora_B.${d.name}.weight`);
    }
  }
  return [...names].map(([tensor, name]) => ({ name, tensor }));
}

/**
 * The tensors to train. Default: the adapters' tensors that want gradients, if there are any, else all weights.
 * @throws {UnsupportedError} all weights of a model with quantized linears
 * @throws {OptionsError} "adapters" of a model without any; a name or tensor given twice
 */
export function chooseParameters(model: { decoder?: Decoder }, choice: ParameterChoice | undefined): NamedTensor[] {
  const { decoder } = model;
  let list: readonly NamedTensor[];
  if (Array.isArray(choice)) list = choice as readonly NamedTensor[];
  else {
    if (!decoder)
      throw new OptionsError(
        "[train] parameters: expected a list of named tensors, because the model has no decoder to take them from",
      );
    const adapters = adapterTensors(decoder);
    const wanted = adapters.filter((p) => p.tensor.requiresGrad);
    if (choice === "adapters" || (choice === undefined && wanted.length > 0)) {
      list = wanted.length > 0 ? wanted : adapters;
      if (list.length === 0)
        throw new OptionsError(
          '[train] parameters: "adapters" needs a model with adapters (applyLora), got one without',
        );
    } else {
      const quantized = decoder.linears().find((l) => l.storage.kind !== "dense");
      if (quantized) {
        throw new UnsupportedError(
          `[train] ${quantized.name} is stored as ${quantized.storage.kind} and has no gradient; train adapters on it (applyLora) or load the model dense`,
          { name: quantized.name },
        );
      }
      list = decoder.trainable();
    }
  }
  if (list.length === 0) throw new OptionsError("[train] parameters: expected at least one tensor, got none");
  const names = new Set<string>();
  const tensors = new Set<Tensor>();
  for (const { name, tensor } of list) {
    if (names.has(name) || tensors.has(tensor))
      throw new OptionsError(`[train] parameters: ${name} is listed twice`, { name });
    if (tensor.dtype === "f16") {
      throw new UnsupportedError(
        `[train] ${name} is f16, whose gradients underflow without loss scaling; load the model with dtype "bf16" or "f32"`,
        { name },
      );
    }
    names.add(name);
    tensors.add(tensor);
  }
  return [...list];
}

/**
 * Lets exactly `parameters` want gradients, everything else of the model none.
 * @returns puts the flags back as they were
 */
export function markTrainable(model: { decoder?: Decoder }, parameters: readonly NamedTensor[]): () => void {
  const all = new Set<Tensor>(parameters.map((p) => p.tensor));
  if (model.decoder) {
    for (const p of model.decoder.trainable()) all.add(p.tensor);
    for (const l of model.decoder.linears()) for (const d of l.deltas) all.add(d.a).add(d.b);
    for (const [, t] of model.decoder.namedTensors()) all.add(t);
  }
  const before = [...all].map((t) => [t, t.requiresGrad] as const);
  for (const t of all) t.requiresGrad = false;
  for (const p of parameters) p.tensor.requiresGrad = true;
  return () => {
    for (const [t, flag] of before) t.requiresGrad = flag;
  };
}
