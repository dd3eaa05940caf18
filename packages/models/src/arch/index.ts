/** Every model that can be loaded. To add one: a file here and a line below. */
import { UnsupportedError } from "@llm/core";
import { internlm2, qwen } from "./fused.js";
import { llama, mistral, qwen2, qwen3 } from "./llama.js";
import type { ModelDefinition } from "./spec.js";

/** Definitions of every model type that can be loaded. */
export const modelDefinitions: readonly ModelDefinition[] = [llama, mistral, qwen2, qwen3, internlm2, qwen];

/** The definition of a `model_type`. @throws {UnsupportedError} naming the model types that can be loaded */
export function findModelDefinition(modelType: unknown): ModelDefinition {
  const found = modelDefinitions.find((d) => d.modelType === modelType);
  if (found) return found;
  throw new UnsupportedError(
    `[config.json] model_type "${String(modelType)}" is not supported; these are: ${modelDefinitions.map((d) => d.modelType).join(", ")}`,
    { modelType },
  );
}
