import { LlmError } from "@llm/core";
import type * as v from "valibot";

export type JsonSchema = Record<string, unknown>;

/** What the converter reads of a valibot schema or of an action in its pipe. */
interface Part {
  kind: string;
  type: string;
  pipe?: readonly Part[];
  entries?: Record<string, Part>;
  item?: Part;
  value?: Part;
  wrapped?: Part;
  options?: readonly unknown[];
  literal?: unknown;
  default?: unknown;
  requirement?: unknown;
  description?: string;
}

/**
 * A valibot schema as JSON Schema (draft 2020-12, as OpenAPI 3.1 uses). Covers what this package's schemas use.
 * @throws {LlmError} INTERNAL for a part that it does not know, rather than describe it wrongly
 */
export function jsonSchema(schema: v.GenericSchema): JsonSchema {
  return convert(schema as unknown as Part);
}

function convert(part: Part): JsonSchema {
  const [base, ...actions] = part.pipe ?? [part];
  const result: JsonSchema = base!.pipe !== undefined && base !== part ? convert(base!) : convertBase(base!);
  for (const action of actions) Object.assign(result, convertAction(action, result));
  return result;
}

function convertBase(part: Part): JsonSchema {
  switch (part.type) {
    case "string":
    case "number":
    case "boolean":
    case "null":
      return { type: part.type };
    case "unknown":
      return {};
    case "literal":
      return { const: part.literal };
    case "picklist":
      return { type: "string", enum: part.options };
    case "array":
      return { type: "array", items: convert(part.item!) };
    case "record":
      return { type: "object", additionalProperties: convert(part.value!) };
    case "union":
      return { anyOf: (part.options as Part[]).map(convert) };
    case "nullable":
      return { anyOf: [convert(part.wrapped!), { type: "null" }] };
    case "nullish":
      return { anyOf: [convert(part.wrapped!), { type: "null" }] };
    case "optional":
      return { ...convert(part.wrapped!), ...(part.default !== undefined && { default: part.default }) };
    case "strict_object":
    case "loose_object": {
      const entries = Object.entries(part.entries!);
      return {
        type: "object",
        properties: Object.fromEntries(entries.map(([key, entry]) => [key, convert(entry)])),
        required: entries
          .filter(([, entry]) => entry.type !== "optional" && entry.type !== "nullish")
          .map(([key]) => key),
        ...(part.type === "strict_object" && { additionalProperties: false }),
      };
    }
    default:
      throw new LlmError("INTERNAL", `[jsonSchema] no rule for the schema '${part.type}'`);
  }
}

function convertAction({ type, requirement, description }: Part, before: JsonSchema): JsonSchema {
  switch (type) {
    case "description":
      return { description };
    case "safe_integer":
    case "integer":
      return { type: "integer" };
    case "min_value":
      return { minimum: requirement };
    case "max_value":
      return { maximum: requirement };
    case "gt_value":
      return { exclusiveMinimum: requirement };
    case "lt_value":
      return { exclusiveMaximum: requirement };
    case "min_length":
      return before.type === "array" ? { minItems: requirement } : { minLength: requirement };
    case "max_length":
      return before.type === "array" ? { maxItems: requirement } : { maxLength: requirement };
    default:
      throw new LlmError("INTERNAL", `[jsonSchema] no rule for the action '${type}'`);
  }
}
