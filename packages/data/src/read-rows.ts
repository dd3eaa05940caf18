import { FormatError, IoError, UnsupportedError } from "@llm/core";
import { parse } from "csv-parse/sync";
import { readFileSync } from "node:fs";
import { basename, extname } from "node:path";
import { gunzipSync } from "node:zlib";
import { locateJsonFault } from "./json-fault.js";
import { describe, rowFault } from "./row-fault.js";

/** A row of a file, or the fault that kept it from being one. */
export interface RawRow {
  index: number;
  /** Line in the file, from 1; absent for elements of a JSON array. */
  line?: number;
  value?: Readonly<Record<string, unknown>>;
  fault?: FormatError;
}

/**
 * Reads a .json (array of objects, or an object with such an array in `data`), .jsonl, .csv or .txt file, each also with
 * .gz behind it. A .json file that holds one object a line is read as jsonl.
 * @param separator  for .txt: what stands between documents; absent = the file is one document
 * @throws {IoError} unreadable file
 * @throws {FormatError} the file as a whole is broken; a single bad line is a row with `fault`
 * @throws {UnsupportedError} another extension
 */
export function readRows(path: string, separator?: string): RawRow[] {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new IoError(
      `[loadDataset] expected a readable file, got ${path}: ${(cause as Error).message}`,
      { file: path },
      cause,
    );
  }
  let name = path;
  if (name.toLowerCase().endsWith(".gz")) {
    name = name.slice(0, -3);
    try {
      bytes = gunzipSync(bytes);
    } catch (cause) {
      throw new FormatError(
        `[loadDataset] ${path}: expected gzip data, got: ${(cause as Error).message}`,
        { file: path },
        cause,
      );
    }
  }
  const kind = extname(name).toLowerCase();
  if (kind === ".jsonl" || kind === ".ndjson") return readJsonLines(bytes);
  if (kind === ".json") return readJson(bytes, path);
  if (kind === ".csv") return readCsv(decodeText(bytes, path), path);
  if (kind === ".txt") return readText(decodeText(bytes, path), separator);
  throw new UnsupportedError(
    `[loadDataset] expected .json, .jsonl, .csv or .txt (or one of these with .gz), got ${basename(path)}`,
    { file: path },
  );
}

function decodeText(bytes: Uint8Array, path: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new FormatError(`[loadDataset] ${path}: expected UTF-8 text, got other bytes`, { file: path }, cause);
  }
}

function asObject(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw rowFault("(row)", "an object", describe(value));
  return value as Record<string, unknown>;
}

/** Rows that are given as values, checked to be objects. */
export function rowsOf(values: readonly unknown[]): RawRow[] {
  return values.map((value, index) => {
    try {
      return { index, value: asObject(value) };
    } catch (fault) {
      return { index, fault: fault as FormatError };
    }
  });
}

/** Works on bytes, so that a file longer than the longest JavaScript string can be read. */
function readJsonLines(bytes: Uint8Array): RawRow[] {
  const rows: RawRow[] = [];
  const decoder = new TextDecoder("utf-8", { fatal: true });
  for (let start = 0, line = 1; start < bytes.length; line += 1) {
    const found = bytes.indexOf(10, start);
    const end = found < 0 ? bytes.length : found;
    const slice = bytes.subarray(start, end);
    start = end + 1;
    let text: string;
    try {
      text = decoder.decode(slice);
    } catch {
      rows.push({ index: rows.length, line, fault: rowFault("(row)", "UTF-8 text", "other bytes") });
      continue;
    }
    if (text.trim() === "") continue;
    try {
      rows.push({ index: rows.length, line, value: asObject(parseJson(text)) });
    } catch (fault) {
      rows.push({ index: rows.length, line, fault: fault as FormatError });
    }
  }
  return rows;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw rowFault("(row)", "a JSON object", (cause as Error).message);
  }
}

function readJson(bytes: Uint8Array, path: string): RawRow[] {
  const text = decodeText(bytes, path);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    const firstLine = text.trimStart().split("\n", 1)[0] ?? "";
    if (firstLine.startsWith("{") && firstLine.trimEnd().endsWith("}")) return readJsonLines(bytes);
    const place = locateJsonFault(text);
    const where = place === undefined ? "" : `:${place.line}:${place.column}`;
    throw new FormatError(
      `[loadDataset] ${path}${where}: expected JSON, got: ${(cause as Error).message}`,
      { file: path, ...place },
      cause,
    );
  }
  if (Array.isArray(value)) return rowsOf(value);
  const data = typeof value === "object" && value !== null ? (value as { data?: unknown }).data : undefined;
  if (Array.isArray(data)) return rowsOf(data);
  if (typeof value === "object" && value !== null && !text.trim().includes("\n")) return rowsOf([value]);
  throw new FormatError(
    `[loadDataset] ${path}: expected an array of objects, or an object with such an array in "data", got ${describe(value)}`,
    { file: path },
  );
}

function readCsv(text: string, path: string): RawRow[] {
  let records: { record: string[]; info: { lines: number } }[];
  try {
    records = parse(text, {
      bom: true,
      relax_column_count: true,
      skip_empty_lines: true,
      info: true,
    }) as unknown as typeof records;
  } catch (cause) {
    throw new FormatError(
      `[loadDataset] ${path}: expected CSV, got: ${(cause as Error).message}`,
      { file: path },
      cause,
    );
  }
  const header = records[0]?.record.map((column) => column.trim());
  if (header === undefined) return [];
  if (new Set(header).size !== header.length)
    throw new FormatError(`[loadDataset] ${path}:1: expected column names that differ, got ${header.join(", ")}`, {
      file: path,
      line: 1,
    });
  return records.slice(1).map(({ record }, index) => {
    // a record begins where the one before it ends
    const line = (records[index]?.info.lines ?? 0) + 1;
    return record.length === header.length
      ? { index, line, value: Object.fromEntries(header.map((column, at) => [column, record[at]])) }
      : { index, line, fault: rowFault("(row)", `${header.length} cells`, `${record.length}`) };
  });
}

function readText(text: string, separator: string | undefined): RawRow[] {
  const parts = separator === undefined ? [text] : text.split(separator);
  const rows: RawRow[] = [];
  let line = 1;
  for (const part of parts) {
    const lead = part.length - part.trimStart().length;
    const first = line + countLines(part.slice(0, lead));
    if (lead < part.length)
      rows.push({ index: rows.length, line: first, value: { text: separator === undefined ? part : part.trim() } });
    line += countLines(part) + countLines(separator ?? "");
  }
  return rows;
}

function countLines(text: string): number {
  let count = 0;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) count += 1;
  return count;
}
