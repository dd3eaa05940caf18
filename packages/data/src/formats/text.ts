import * as v from "valibot";
import { defineFormat, requiredText } from "./define-format.js";

/** Plain text: every row is a document and all of it is learned. Files ending in .txt are read as this. */
export const text = defineFormat({
  name: "text",
  summary: "text (the whole document is learned)",
  columns: { text: "required" },
  schema: v.looseObject({ text: requiredText }),
  matches: (row) => typeof row["text"] === "string",
  toExample: (row) => ({ kind: "text", text: row.text }),
});
