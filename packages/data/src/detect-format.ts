import { FormatError, OptionsError, UnsupportedError } from "@llm/core";
import type { DataFormat } from "./formats/define-format.js";
import { dataFormats } from "./formats/index.js";

/** Gives a row the column names that the format reads. @param columns format's column → file's column */
export function renameColumns(
  row: Readonly<Record<string, unknown>>,
  columns: Readonly<Record<string, string>> | undefined,
): Readonly<Record<string, unknown>> {
  if (columns === undefined) return row;
  const renamed: Record<string, unknown> = { ...row };
  for (const from of Object.values(columns)) delete renamed[from];
  for (const [to, from] of Object.entries(columns)) if (from in row) renamed[to] = row[from];
  return renamed;
}

/** @throws {OptionsError} for an unknown name, or a `columns` key that the format does not read */
export function resolveFormat(
  format: string | DataFormat,
  columns: Readonly<Record<string, string>> | undefined,
): DataFormat {
  const found = typeof format === "string" ? dataFormats.get(format) : format;
  if (found === undefined)
    throw new OptionsError(
      `[loadDataset] format: expected one of ${[...dataFormats.keys()].join(", ")}, got ${JSON.stringify(format)}`,
    );
  for (const column of Object.keys(columns ?? {}))
    if (!(column in found.columns))
      throw new OptionsError(
        `[loadDataset] columns: expected keys of format "${found.name}" (${Object.keys(found.columns).join(", ")}), got "${column}"`,
        { format: found.name, column },
      );
  return found;
}

/**
 * Finds the one format whose required columns a row has.
 * @throws {FormatError} when none or several fit; `data.candidates` lists them
 * @throws {UnsupportedError} for preference data (chosen/rejected, or messages with a boolean label)
 */
export function detectFormat(
  row: Readonly<Record<string, unknown>>,
  columns: Readonly<Record<string, string>> | undefined,
  source: string,
): DataFormat {
  const renamed = renameColumns(row, columns);
  const keys = Object.keys(row);
  if (
    "chosen" in renamed ||
    "rejected" in renamed ||
    "chosen_messages" in renamed ||
    typeof renamed["label"] === "boolean" ||
    typeof renamed["kto_tag"] === "boolean"
  )
    throw new UnsupportedError(
      `[loadDataset] ${source}: expected conversations or text, got preference data (columns ${keys.join(", ")}); ` +
        `name a format to train on the conversations alone`,
      { file: source, columns: keys },
    );
  const candidates = [...dataFormats.values()].filter(
    (format) => format.matches(renamed) && Object.keys(columns ?? {}).every((column) => column in format.columns),
  );
  const [found] = candidates;
  if (found !== undefined && candidates.length === 1) return found;
  const names = candidates.map((format) => format.name);
  if (found !== undefined)
    throw new FormatError(
      `[loadDataset] ${source}: the columns ${keys.join(", ")} fit several formats: ${names.join(", ")}; name one in \`format\``,
      { file: source, columns: keys, candidates: names },
    );
  const known = [...dataFormats.values()].map((format) => `${format.name} (${format.summary})`).join("; ");
  throw new FormatError(
    `[loadDataset] ${source}: expected the columns of a known format, got ${keys.join(", ") || "none"}. ` +
      `Name a format and map its columns with \`columns\`. Known: ${known}`,
    { file: source, columns: keys, candidates: [] },
  );
}
