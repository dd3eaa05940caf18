import * as v from "valibot";
import { historyColumn, toTurns } from "./alpaca.js";
import { defineFormat, optionalText, requiredText } from "./define-format.js";

/** ms-swift's pairs: query and response, with earlier pairs in history. */
export const queryResponse = defineFormat({
  name: "query-response",
  summary: "query, response, system?, history? [[query, response]]",
  columns: { query: "required", response: "required", system: "optional", history: "optional" },
  schema: v.looseObject({ query: v.string(), response: requiredText, system: optionalText, history: historyColumn }),
  toExample: (row) => ({ kind: "chat", messages: toTurns(row.system, row.history, row.query, row.response) }),
});
