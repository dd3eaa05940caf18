import type { Tool, ToolCall } from "@llm/models";
import * as v from "valibot";
import { describe, rowFault } from "../row-fault.js";
import { jsonColumn } from "./define-format.js";

const toolFunction = v.looseObject({
  name: v.string(),
  description: v.nullish(v.string()),
  parameters: v.nullish(v.record(v.string(), v.unknown())),
});

/** The `tools` column: OpenAI's wrapped form or bare function objects, as a list or as JSON text. */
export const toolsColumn = v.optional(
  jsonColumn(
    v.nullish(v.array(v.union([v.looseObject({ type: v.literal("function"), function: toolFunction }), toolFunction]))),
  ),
);

/** Brings tools to OpenAI's form, keeping every key that the file gave. Absent and empty lists become undefined. */
export function toTools(tools: v.InferOutput<typeof toolsColumn>): Tool[] | undefined {
  if (tools === undefined || tools === null || tools.length === 0) return undefined;
  return tools.map((tool) =>
    "function" in tool && tool.type === "function"
      ? (tool as unknown as Tool)
      : ({ type: "function", function: tool } as Tool),
  );
}

/**
 * A call `{name, arguments}` or `{function: {name, arguments}}`. Arguments written as JSON text become an object, which is
 * what chat templates expect; text that is no JSON object stays text.
 * @throws {FormatError} without a name
 */
export function toToolCall(value: unknown, key: string): ToolCall {
  const outer = value as { id?: unknown; function?: unknown; name?: unknown; arguments?: unknown } | null;
  const inner = (typeof outer?.function === "object" && outer.function !== null ? outer.function : outer) as {
    name?: unknown;
    arguments?: unknown;
  } | null;
  if (typeof inner !== "object" || inner === null || typeof inner.name !== "string")
    throw rowFault(key, "a call {name, arguments}", describe(value));
  let parsed: unknown = inner.arguments ?? {};
  if (typeof parsed === "string") {
    try {
      const object: unknown = JSON.parse(parsed);
      if (typeof object === "object" && object !== null && !Array.isArray(object)) parsed = object;
    } catch {
      // not JSON: the text itself is what the model wrote
    }
  }
  if (typeof parsed !== "string" && (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)))
    throw rowFault(`${key}.arguments`, "an object or JSON text", describe(parsed));
  return {
    ...(typeof outer?.id === "string" ? { id: outer.id } : {}),
    type: "function",
    function: { name: inner.name, arguments: parsed as string | Record<string, unknown> },
  };
}

/** One call or a list of calls, as a value or as JSON text. */
export function toToolCalls(value: unknown, key: string): ToolCall[] {
  let parsed = value;
  if (typeof value === "string") {
    try {
      parsed = JSON.parse(value);
    } catch {
      throw rowFault(key, "a call {name, arguments} as JSON", describe(value));
    }
  }
  return Array.isArray(parsed)
    ? parsed.map((call, index) => toToolCall(call, `${key}.${index}`))
    : [toToolCall(parsed, key)];
}
