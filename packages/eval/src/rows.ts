import { readFile } from "node:fs/promises";
import { extname } from "node:path";
import { FormatError, IoError, UnsupportedError } from "@llm/core";
import { parse as parseCsv } from "csv-parse/sync";

/** A row of a set: column to value. csv values are texts, JSON keeps its types. */
export type Row = Readonly<Record<string, unknown>>;

/** Reads a text file, without its byte order mark. @throws {IoError} */
export async function readText(file: string): Promise<string> {
  try {
    const text = await readFile(file, "utf8");
    return text.charCodeAt(0) === 0xfeff ? text.slice(1) : text;
  } catch (error) {
    throw new IoError(`[evaluate] expected to read ${file}: ${(error as Error).message}`, { file }, error);
  }
}

/**
 * Reads the rows of a `.jsonl`, `.json` (a list) or `.csv` file (first line = columns). A byte order mark and empty lines
 * are skipped.
 * @throws {FormatError} naming file and line
 * @throws {UnsupportedError} another ending
 */
export async function readRows(file: string): Promise<Row[]> {
  const kind = extname(file).toLowerCase();
  if (kind !== ".jsonl" && kind !== ".json" && kind !== ".csv")
    throw new UnsupportedError(`[readRows] ${file}: expected .jsonl, .json or .csv, got "${kind}"`, { file });
  const text = await readText(file);
  const rows = kind === ".csv" ? csvRows(file, text) : kind === ".json" ? jsonRows(file, text) : jsonLines(file, text);
  if (rows.length === 0) throw new FormatError(`[readRows] ${file}: expected at least one row, got none`, { file });
  return rows;
}

function checkRow(file: string, line: number, value: unknown): Row {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Row;
  const got = value === null ? "null" : Array.isArray(value) ? "a list" : typeof value;
  throw new FormatError(`[readRows] ${file}:${line}: expected an object, got ${got}`, { file, line });
}

function jsonLines(file: string, text: string): Row[] {
  const rows: Row[] = [];
  text.split("\n").forEach((line, i) => {
    if (line.trim() === "") return;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      throw new FormatError(
        `[readRows] ${file}:${i + 1}: expected JSON: ${(error as Error).message}`,
        { file, line: i + 1 },
        error,
      );
    }
    rows.push(checkRow(file, i + 1, value));
  });
  return rows;
}

function jsonRows(file: string, text: string): Row[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FormatError(`[readRows] ${file}: expected JSON: ${(error as Error).message}`, { file }, error);
  }
  if (!Array.isArray(value)) throw new FormatError(`[readRows] ${file}: expected a list of objects`, { file });
  return value.map((entry, i) => checkRow(file, i + 1, entry));
}

function csvRows(file: string, text: string): Row[] {
  try {
    return parseCsv(text, { columns: true, skip_empty_lines: true, relax_column_count: false }) as Row[];
  } catch (error) {
    const line = (error as { lines?: number }).lines;
    throw new FormatError(
      `[readRows] ${file}${line === undefined ? "" : `:${line}`}: expected csv: ${(error as Error).message}`,
      { file, ...(line === undefined ? {} : { line }) },
      error,
    );
  }
}

/** The text of a cell; "" for null and absent. */
export function cellText(row: Row, column: string): string {
  const value = row[column];
  if (value === undefined || value === null) return "";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
