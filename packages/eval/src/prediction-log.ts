import { mkdir, open, readFile, rename, rm, truncate, writeFile, type FileHandle } from "node:fs/promises";
import { dirname, join } from "node:path";
import { FormatError, IoError } from "@llm/core";

/** First line of a prediction file: what its lines answer. */
export interface PredictionLogHeader {
  model: string;
  fingerprint: string;
  task: string;
  /** SHA-256 of prompts, configuration and data (`taskHash`). */
  hash: string;
}

/** One further line. */
export interface StoredPrediction {
  id: string;
  prediction: unknown;
  durationMs: number;
}

const VERSION = 1;

/** Letters, digits, dot and hyphen stay; the hash keeps names apart that become equal. */
function fileNamePart(text: string): string {
  return (
    text
      .replace(/[^\p{L}\p{N}._-]+/gu, "_")
      .replace(/^\.+/, "_")
      .slice(0, 80) || "_"
  );
}

/** `<workDir>/predictions/<model>-<fingerprint>/<task>-<hash>.jsonl` */
export function predictionLogPath(workDir: string, header: PredictionLogHeader): string {
  const folder = `${fileNamePart(header.model)}-${header.fingerprint.slice(0, 12)}`;
  return join(workDir, "predictions", folder, `${fileNamePart(header.task)}-${header.hash.slice(0, 12)}.jsonl`);
}

/**
 * Predictions of one model on one task as JSON lines, appended as they come, in any order. A process killed while it
 * writes leaves at most one unfinished last line, which is cut off on the next opening.
 */
export class PredictionLog {
  readonly path: string;
  /** By item id, as found on opening. */
  readonly stored: ReadonlyMap<string, StoredPrediction>;
  private readonly file: FileHandle;
  private tail: Promise<void> = Promise.resolve();

  private constructor(path: string, stored: Map<string, StoredPrediction>, file: FileHandle) {
    this.path = path;
    this.stored = stored;
    this.file = file;
  }

  /**
   * @throws {FormatError} a line inside the file that is not a prediction, or another task's or model's file
   * @throws {IoError} the folder cannot be written
   */
  static async open(workDir: string, header: PredictionLogHeader): Promise<PredictionLog> {
    const path = predictionLogPath(workDir, header);
    try {
      await mkdir(dirname(path), { recursive: true });
      const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT") return undefined;
        throw error;
      });
      const stored = new Map<string, StoredPrediction>();
      const end = bytes === undefined ? 0 : bytes.lastIndexOf(0x0a) + 1;
      if (bytes === undefined || end === 0) {
        const temporary = `${path}.${process.pid}.tmp`;
        await writeFile(temporary, `${JSON.stringify({ version: VERSION, ...header })}\n`);
        await rename(temporary, path);
      } else {
        readLines(path, bytes.subarray(0, end).toString("utf8"), header, stored);
        if (end < bytes.length) await truncate(path, end);
      }
      return new PredictionLog(path, stored, await open(path, "a"));
    } catch (error) {
      if (FormatError.isInstance(error)) throw error;
      throw new IoError(`[evaluate] expected to read and write ${path}: ${(error as Error).message}`, { path }, error);
    }
  }

  /** Appends one line; resolves when it is handed to the operating system. Calls may overlap. */
  append(entry: StoredPrediction): Promise<void> {
    const line = Buffer.from(`${JSON.stringify(entry)}\n`);
    const write = async (): Promise<void> => {
      try {
        await this.file.appendFile(line);
      } catch (error) {
        throw new IoError(
          `[evaluate] expected to append to ${this.path}: ${(error as Error).message}`,
          { path: this.path },
          error,
        );
      }
    };
    const done = this.tail.then(write);
    this.tail = done.catch(() => undefined);
    return done;
  }

  async close(): Promise<void> {
    await this.tail;
    await this.file.close();
  }

  /** Removes the file, so that everything is asked again. */
  static async remove(workDir: string, header: PredictionLogHeader): Promise<void> {
    await rm(predictionLogPath(workDir, header), { force: true });
  }
}

function readLines(
  path: string,
  text: string,
  header: PredictionLogHeader,
  stored: Map<string, StoredPrediction>,
): void {
  const lines = text.split("\n");
  lines.pop();
  lines.forEach((line, i) => {
    let value: Record<string, unknown>;
    try {
      value = JSON.parse(line) as Record<string, unknown>;
    } catch (error) {
      throw new FormatError(
        `[evaluate] ${path}:${i + 1}: expected JSON; remove the file to ask again`,
        { file: path, line: i + 1 },
        error,
      );
    }
    if (i === 0) {
      const same =
        value["version"] === VERSION &&
        (["model", "fingerprint", "task", "hash"] as const).every((key) => value[key] === header[key]);
      if (!same)
        throw new FormatError(`[evaluate] ${path}:1: expected predictions of ${header.model} on ${header.task}`, {
          file: path,
          line: 1,
          expected: header,
          got: value,
        });
      return;
    }
    if (typeof value["id"] !== "string" || !("prediction" in value))
      throw new FormatError(`[evaluate] ${path}:${i + 1}: expected {id, prediction}`, { file: path, line: i + 1 });
    stored.set(value["id"], {
      id: value["id"],
      prediction: value["prediction"],
      durationMs: typeof value["durationMs"] === "number" ? value["durationMs"] : 0,
    });
  });
}
