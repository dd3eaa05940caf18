import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { IoError, parseOptions } from "@llm/core";
import * as v from "valibot";
import type { Results } from "../evaluate.js";
import { toCsv } from "./csv.js";
import { toHtml } from "./html.js";
import { toJson } from "./json.js";
import { formatTable } from "./table.js";

export const writeReportOptionsSchema = v.strictObject({
  /** @default ["table", "csv", "json", "html"] */
  formats: v.optional(v.pipe(v.array(v.picklist(["table", "csv", "json", "html"])), v.minLength(1)), [
    "table",
    "csv",
    "json",
    "html",
  ]),
  /** File name without its ending. @default "report" */
  name: v.optional(v.pipe(v.string(), v.regex(/^[^/\\]+$/, "expected a file name without folders")), "report"),
  /** Heading of the page. @default "Evaluation" */
  title: v.optional(v.string(), "Evaluation"),
});

export type WriteReportOptions = v.InferInput<typeof writeReportOptionsSchema>;

/**
 * Writes `<name>.txt`, `.csv`, `.json` and `.html` into a folder, which is made if needed. Each file is written under a
 * temporary name and renamed, so a reader never meets half a file.
 * @returns the paths written, in the order of `formats`
 * @throws {IoError}
 */
export async function writeReport(
  results: Results,
  folder: string,
  options: WriteReportOptions = {},
): Promise<string[]> {
  const { formats, name, title } = parseOptions(writeReportOptionsSchema, options, "writeReport");
  const content = {
    table: () => `${formatTable(results, "matrix")}\n${formatTable(results, "list")}`,
    csv: () => toCsv(results),
    json: () => toJson(results),
    html: () => toHtml(results, title),
  };
  const paths: string[] = [];
  for (const format of new Set(formats)) {
    const path = join(folder, `${name}.${format === "table" ? "txt" : format}`);
    const temporary = `${path}.${process.pid}.tmp`;
    try {
      await mkdir(folder, { recursive: true });
      await writeFile(temporary, content[format]());
      await rename(temporary, path);
    } catch (error) {
      await rm(temporary, { force: true });
      throw new IoError(`[writeReport] ${path}: ${(error as Error).message}`, { path }, error);
    }
    paths.push(path);
  }
  return paths;
}
