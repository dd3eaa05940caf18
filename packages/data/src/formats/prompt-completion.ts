import * as v from "valibot";
import { describe, rowFault } from "../row-fault.js";
import { defineFormat } from "./define-format.js";
import { messageSchema, toMessage } from "./messages.js";

/**
 * prompt and completion: two texts joined as they are, without a chat template, or two lists of messages. The completion is
 * learned, the prompt is not.
 */
export const promptCompletion = defineFormat({
  name: "prompt-completion",
  summary: "prompt, completion (texts, or lists of messages)",
  columns: { prompt: "required", completion: "required" },
  schema: v.looseObject({
    prompt: v.union([v.string(), v.array(messageSchema)]),
    completion: v.union([v.string(), v.array(messageSchema)]),
  }),
  toExample(row) {
    if (row.completion.length === 0) throw rowFault("completion", "something to learn", describe(row.completion));
    if (typeof row.prompt === "string" && typeof row.completion === "string")
      return { kind: "completion", prompt: row.prompt, completion: row.completion };
    if (typeof row.prompt === "string" || typeof row.completion === "string")
      throw rowFault(
        "completion",
        typeof row.prompt === "string" ? "a string, as the prompt" : "a list of messages, as the prompt",
        describe(row.completion),
      );
    return {
      kind: "chat",
      messages: [
        ...row.prompt.map((message, index) => ({ loss: false, ...toMessage(message, `prompt.${index}`) })),
        ...row.completion.map((message, index) => toMessage(message, `completion.${index}`)),
      ],
    };
  },
});
