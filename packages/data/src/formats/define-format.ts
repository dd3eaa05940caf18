import { FormatError } from "@llm/core";
import * as v from "valibot";
import type { Example } from "../example.js";
import { describe, rowFault } from "../row-fault.js";

/** How rows of a file become examples. Made by {@link defineFormat}. */
export interface DataFormat {
  /** Name for the `format` option. */
  readonly name: string;
  /** One line for lists and error messages. */
  readonly summary: string;
  /** Columns that the format reads; the keys of the `columns` option. */
  readonly columns: Readonly<Record<string, "required" | "optional">>;
  /** Whether a row (columns already renamed) looks like this format; used when no format is named. */
  matches(row: Readonly<Record<string, unknown>>): boolean;
  /** @throws {FormatError} by {@link rowFault}, naming key, expectation and what came */
  parse(row: Readonly<Record<string, unknown>>): Example;
}

/** What {@link defineFormat} needs: columns, a schema of a row, and how the row becomes an example. */
export interface DataFormatDefinition<TSchema extends v.GenericSchema> {
  name: string;
  summary: string;
  columns: Record<string, "required" | "optional">;
  /** valibot schema of a row; use `v.looseObject` so that further columns are let through. */
  schema: TSchema;
  /** Default: every required column is present and not null. */
  matches?(row: Readonly<Record<string, unknown>>): boolean;
  /** May throw {@link rowFault}. */
  toExample(row: v.InferOutput<TSchema>): Example;
}

/**
 * Declares a data set format. Pass the result as `format`; nothing is registered by importing it.
 *
 * @example
 * const faq = defineFormat({
 *   name: "faq", summary: "question and answer columns", columns: { question: "required", answer: "required" },
 *   schema: v.looseObject({ question: v.string(), answer: v.string() }),
 *   toExample: (row) => ({ kind: "chat", messages: [
 *     { role: "user", content: row.question }, { role: "assistant", content: row.answer }] }),
 * });
 */
export function defineFormat<TSchema extends v.GenericSchema>(definition: DataFormatDefinition<TSchema>): DataFormat {
  const required = Object.keys(definition.columns).filter((column) => definition.columns[column] === "required");
  if (required.length === 0)
    throw new FormatError(`[defineFormat] ${definition.name}: expected at least one required column`);
  return {
    name: definition.name,
    summary: definition.summary,
    columns: definition.columns,
    matches:
      definition.matches ?? ((row) => required.every((column) => row[column] !== undefined && row[column] !== null)),
    parse(row) {
      const result = v.safeParse(definition.schema, row);
      if (result.success) return definition.toExample(result.output);
      throw issueFault(result.issues[0]);
    },
  };
}

/** The fault of a row for a schema's issue. @param parent path of the parsed value within the row */
export function issueFault(issue: v.BaseIssue<unknown>, parent?: string): FormatError {
  const path = v.getDotPath(issue);
  const key = [parent, path].filter((part) => part !== undefined && part !== null).join(".") || "(row)";
  const last = issue.path?.at(-1)?.key;
  const isMissing = issue.received === "undefined" && issue.expected === JSON.stringify(last);
  return rowFault(
    key,
    isMissing ? "this key" : (issue.expected ?? issue.message),
    isMissing ? "a row without it" : describe(issue.input),
  );
}

/** A text column: null and "" (an empty cell) count as absent. */
export const optionalText = v.pipe(
  v.nullish(v.string()),
  v.transform((text) => (text === null || text === "" ? undefined : text)),
);

/** A text column that must say something. */
export const requiredText = v.pipe(
  v.string(),
  v.check((text) => text.length > 0, "a text that is not empty"),
);

/** A column that holds a value, or that value written as JSON (csv cells, sharegpt's `tools`); "" counts as absent. */
export function jsonColumn<TSchema extends v.GenericSchema>(schema: TSchema) {
  return v.pipe(
    v.unknown(),
    v.rawTransform<unknown, unknown>(({ dataset, addIssue, NEVER }) => {
      if (typeof dataset.value !== "string") return dataset.value;
      if (dataset.value.trim() === "") return undefined;
      try {
        return JSON.parse(dataset.value) as unknown;
      } catch {
        addIssue({ message: "valid JSON", expected: "valid JSON" });
        return NEVER;
      }
    }),
    schema,
  );
}
