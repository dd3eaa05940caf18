import * as v from "valibot";
import type { TrainMessage } from "../example.js";
import { describe, rowFault } from "../row-fault.js";
import { defineFormat, issueFault, jsonColumn, optionalText } from "./define-format.js";
import { messageSchema, toMessage } from "./messages.js";
import { toTools, toToolCalls, toolsColumn } from "./tools.js";

const turn = v.looseObject({
  from: v.string(),
  value: v.string(),
  loss: v.nullish(v.union([v.boolean(), v.pipe(v.number(), v.finite(), v.minValue(0))])),
});

const roles: Record<string, TrainMessage["role"]> = {
  human: "user",
  user: "user",
  gpt: "assistant",
  assistant: "assistant",
  chatgpt: "assistant",
  bing: "assistant",
  bard: "assistant",
  model: "assistant",
  system: "system",
  function_call: "assistant",
  observation: "tool",
  function_response: "tool",
  tool: "tool",
};

/** ShareGPT: `conversations` of from and value (or of role and content); function_call and observation turns carry tool use. */
export const sharegpt = defineFormat({
  name: "sharegpt",
  summary: "conversations [{from, value}] (human, gpt, system, function_call, observation), system?, tools?",
  columns: { conversations: "required", system: "optional", tools: "optional" },
  schema: v.looseObject({ conversations: jsonColumn(v.array(v.unknown())), system: optionalText, tools: toolsColumn }),
  toExample(row) {
    const messages = row.conversations.map((item, index) => toTurn(item, `conversations.${index}`));
    if (row.system && messages[0]?.role !== "system") messages.unshift({ role: "system", content: row.system });
    const tools = toTools(row.tools);
    return { kind: "chat", messages, ...(tools ? { tools } : {}) };
  },
});

function toTurn(item: unknown, key: string): TrainMessage {
  const isOpenai = typeof item === "object" && item !== null && "role" in item && !("from" in item);
  const result = isOpenai ? v.safeParse(messageSchema, item) : v.safeParse(turn, item);
  if (!result.success) throw issueFault(result.issues[0], key);
  if (isOpenai) return toMessage(result.output as v.InferOutput<typeof messageSchema>, key);
  const { from, value, loss } = result.output as v.InferOutput<typeof turn>;
  const role = roles[from];
  if (role === undefined) throw rowFault(`${key}.from`, `one of ${Object.keys(roles).join(", ")}`, describe(from));
  if (role === "assistant" && value === "") throw rowFault(`${key}.value`, "a text that is not empty", describe(value));
  return {
    role,
    content: from === "function_call" ? "" : value,
    ...(from === "function_call" ? { tool_calls: toToolCalls(value, `${key}.value`) } : {}),
    ...(loss === undefined || loss === null ? {} : { loss }),
  };
}
