import * as v from "valibot";
import type { TrainMessage } from "../example.js";
import { describe, rowFault } from "../row-fault.js";
import { defineFormat, jsonColumn, optionalText, requiredText } from "./define-format.js";

const turn = v.looseObject({
  system: optionalText,
  input: optionalText,
  output: requiredText,
  output_with_loss: v.nullish(v.boolean()),
  need_eos_token: v.nullish(v.boolean()),
});

/**
 * XTuner's form: `conversation` of {system, input, output}; `output_with_loss: false` leaves a turn out of the loss.
 * A single turn with no input and no system is plain text (that is how XTuner writes pre-training data).
 */
export const conversation = defineFormat({
  name: "conversation",
  summary: "XTuner: conversation [{system?, input, output, output_with_loss?}]",
  columns: { conversation: "required" },
  schema: v.looseObject({ conversation: jsonColumn(v.array(turn)) }),
  toExample(row) {
    const [first] = row.conversation;
    if (first === undefined) throw rowFault("conversation", "at least one turn", "array of 0");
    if (row.conversation.length === 1 && !first.input && !first.system) return { kind: "text", text: first.output };
    const messages: TrainMessage[] = [];
    for (const [index, { system, input, output, output_with_loss, need_eos_token }] of row.conversation.entries()) {
      if (need_eos_token === false)
        throw rowFault(
          `conversation.${index}.need_eos_token`,
          "true or absent (the end of a turn is always learned)",
          describe(need_eos_token),
        );
      if (system) messages.push({ role: "system", content: system });
      if (input) messages.push({ role: "user", content: input });
      messages.push({ role: "assistant", content: output, ...(output_with_loss === false ? { loss: false } : {}) });
    }
    return { kind: "chat", messages };
  },
});
