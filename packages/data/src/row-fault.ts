import { FormatError, LlmError } from "@llm/core";

/** Where a row came from. `line` counts from 1 (jsonl, csv); `index` counts from 0 over the source's rows. */
export interface RowPlace {
  source: string;
  index: number;
  line?: number;
}

/** `train.jsonl:12` or `train.json[11]`. */
export function placeText(place: RowPlace): string {
  return place.line === undefined ? `${place.source}[${place.index}]` : `${place.source}:${place.line}`;
}

/**
 * The error for a row that breaks its format; a format's `toExample` throws it, the loader adds file and line.
 * @param key  path of the value within the row, e.g. `conversations.3.value`
 * @param expected  what would have been right, e.g. `a string`
 * @param got  what was there instead
 */
export function rowFault(key: string, expected: string, got: string): FormatError {
  return new FormatError(`"${key}": expected ${expected}, got ${got}`, { key, expected, got, rowFault: true });
}

/** True for errors about one row's content; everything else (a missing template, a bad option) concerns the whole set. */
export function isRowFault(error: unknown): error is LlmError {
  return LlmError.isInstance(error, "FORMAT") && error.data["rowFault"] === true;
}

/** The same error with its place in front of the message and in `data`. */
export function faultAt(error: LlmError, place: RowPlace): FormatError {
  return new FormatError(
    `[loadDataset] ${placeText(place)}: ${error.message}`,
    {
      ...error.data,
      file: place.source,
      index: place.index,
      ...(place.line === undefined ? {} : { line: place.line }),
    },
    error,
  );
}

/** A short name for a value in an error message: `undefined`, `42`, `"text…"`, `array of 3`, `object`. */
export function describe(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value);
  if (Array.isArray(value)) return `array of ${value.length}`;
  if (typeof value === "object" && value !== null)
    return `object with ${Object.keys(value).slice(0, 6).join(", ") || "no keys"}`;
  return String(value);
}
