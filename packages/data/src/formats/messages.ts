import * as v from "valibot";
import type { TrainMessage } from "../example.js";
import { describe, rowFault } from "../row-fault.js";
import { defineFormat, jsonColumn } from "./define-format.js";
import { toTools, toToolCall, toToolCalls, toolsColumn } from "./tools.js";

const lossField = v.nullish(v.union([v.boolean(), v.pipe(v.number(), v.finite(), v.minValue(0))]));

/** A message in OpenAI's form; content is text, null, or a list of parts of type text, reasoning or tool_call. */
export const messageSchema = v.looseObject({
  role: v.string(),
  content: v.nullish(
    v.union([
      v.string(),
      v.array(v.looseObject({ type: v.string(), text: v.nullish(v.string()), value: v.nullish(v.string()) })),
    ]),
  ),
  name: v.nullish(v.string()),
  reasoning_content: v.nullish(v.string()),
  tool_calls: v.nullish(v.array(v.unknown())),
  function_call: v.optional(v.unknown()),
  tool_call_id: v.nullish(v.string()),
  loss: lossField,
  loss_weight: lossField,
  weight: lossField,
});

const roles: Record<string, string> = {
  developer: "system",
  function: "tool",
  human: "user",
  gpt: "assistant",
  model: "assistant",
};

/** Turns a parsed message into ours. @param key path of the message in its row, for errors */
export function toMessage(message: v.InferOutput<typeof messageSchema>, key: string): TrainMessage {
  let content: string | null = null;
  let reasoning = message.reasoning_content ?? undefined;
  const calls = (message.tool_calls ?? []).map((call, index) => toToolCall(call, `${key}.tool_calls.${index}`));
  if (message.function_call !== undefined && message.function_call !== null)
    calls.push(toToolCall(message.function_call, `${key}.function_call`));
  if (Array.isArray(message.content)) {
    for (const [index, part] of message.content.entries()) {
      const text = part.text ?? part.value;
      if (text === undefined || text === null)
        throw rowFault(`${key}.content.${index}`, "a part with text (images and sound are not taken)", describe(part));
      if (part.type === "text") content = (content ?? "") + text;
      else if (part.type === "reasoning") reasoning = (reasoning ?? "") + text;
      else if (part.type === "tool_call") calls.push(...toToolCalls(text, `${key}.content.${index}`));
      else throw rowFault(`${key}.content.${index}.type`, "text, reasoning or tool_call", describe(part.type));
    }
  } else if (typeof message.content === "string") content = message.content;

  const role = roles[message.role] ?? message.role;
  if (role === "assistant") {
    if (!content && calls.length === 0 && !reasoning)
      throw rowFault(`${key}.content`, "a text that is not empty, or tool_calls", describe(message.content));
    content ??= "";
  } else if (content === null) throw rowFault(`${key}.content`, "a string", describe(message.content));
  const loss = message.loss ?? message.loss_weight ?? message.weight ?? undefined;
  return {
    role,
    content,
    ...(message.name ? { name: message.name } : {}),
    ...(reasoning ? { reasoning_content: reasoning } : {}),
    ...(calls.length > 0 ? { tool_calls: calls } : {}),
    ...(message.tool_call_id ? { tool_call_id: message.tool_call_id } : {}),
    ...(loss === undefined ? {} : { loss }),
  };
}

/** OpenAI's chat form: `messages` of role and content, `tools`, `tool_calls`; `loss` (or `weight`) on a message overrides the mask. */
export const messages = defineFormat({
  name: "messages",
  summary: "OpenAI chat: messages [{role, content, tool_calls?, loss?}], tools?",
  columns: { messages: "required", tools: "optional" },
  schema: v.looseObject({ messages: jsonColumn(v.array(messageSchema)), tools: toolsColumn }),
  toExample(row) {
    const tools = toTools(row.tools);
    return {
      kind: "chat",
      messages: row.messages.map((message, index) => toMessage(message, `messages.${index}`)),
      ...(tools ? { tools } : {}),
    };
  },
});
