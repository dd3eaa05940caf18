import { FormatError, UnsupportedError } from "@llm/core";
import { asComponent, asObject, describe, type ComponentJson } from "./spec.js";

/** Ids put before and after every encoded text. */
export interface Frame {
  prefix: number[];
  suffix: number[];
}

/**
 * Compiles the `post_processor` of a tokenizer.json for single texts.
 * @throws {UnsupportedError} an unknown kind
 */
export function compilePostProcessor(component: ComponentJson | null): Frame {
  if (component === null) return { prefix: [], suffix: [] };
  switch (component.type) {
    case "ByteLevel":
      return { prefix: [], suffix: [] };
    case "Sequence": {
      const steps = component["processors"];
      if (!Array.isArray(steps)) {
        throw new FormatError(`[post_processor] expected an array "processors", got ${describe(steps)}`);
      }
      const frame: Frame = { prefix: [], suffix: [] };
      for (const step of steps) {
        const { prefix, suffix } = compilePostProcessor(asComponent(step, "post_processor.processors"));
        frame.prefix.unshift(...prefix);
        frame.suffix.push(...suffix);
      }
      return frame;
    }
    case "TemplateProcessing":
      return template(component);
    case "BertProcessing":
    case "RobertaProcessing":
      return { prefix: [pairId(component, "cls")], suffix: [pairId(component, "sep")] };
    default:
      throw new UnsupportedError(
        `[loadTokenizer] post_processor ${component.type} is not supported; supported: Sequence, TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing`,
        { type: component.type },
      );
  }
}

function template(component: ComponentJson): Frame {
  const where = "post_processor.TemplateProcessing";
  const single = component["single"];
  if (!Array.isArray(single)) throw new FormatError(`[${where}] expected an array "single", got ${describe(single)}`);
  const special = asObject(component["special_tokens"] ?? {}, `${where}.special_tokens`);
  const frame: Frame = { prefix: [], suffix: [] };
  let side = frame.prefix;
  for (const item of single) {
    const entry = asObject(item, `${where}.single`);
    if ("Sequence" in entry) side = frame.suffix;
    else {
      const name = String(asObject(entry["SpecialToken"], `${where}.single`)["id"]);
      const ids = asObject(special[name], `${where}.special_tokens[${JSON.stringify(name)}]`)["ids"];
      if (!Array.isArray(ids)) throw new FormatError(`[${where}] expected "ids" of ${name}, got ${describe(ids)}`);
      side.push(...(ids as number[]));
    }
  }
  return frame;
}

function pairId(component: ComponentJson, key: string): number {
  const pair = component[key];
  if (!Array.isArray(pair) || typeof pair[1] !== "number") {
    throw new FormatError(`[post_processor.${component.type}] expected ${key}: [token, id], got ${describe(pair)}`);
  }
  return pair[1];
}

/** A TemplateProcessing step that puts `bos` before and `eos` after a text, or null when there is neither. */
export function framePostProcessor(
  bos: { content: string; id: number } | undefined,
  eos: { content: string; id: number } | undefined,
): ComponentJson | null {
  if (bos === undefined && eos === undefined) return null;
  const sequence = (name: "A" | "B", type: number): object[] => [
    ...(bos ? [{ SpecialToken: { id: bos.content, type_id: type } }] : []),
    { Sequence: { id: name, type_id: type } },
    ...(eos ? [{ SpecialToken: { id: eos.content, type_id: type } }] : []),
  ];
  const tokens = [bos, eos].filter((token) => token !== undefined);
  return {
    type: "TemplateProcessing",
    single: sequence("A", 0),
    pair: [...sequence("A", 0), ...sequence("B", 1)],
    special_tokens: Object.fromEntries(
      tokens.map(({ content, id }) => [content, { id: content, ids: [id], tokens: [content] }]),
    ),
  };
}
