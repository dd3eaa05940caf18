/** Where a command writes: people at a terminal get text and a bar, a pipe gets JSON lines. */
import { createColors } from "picocolors";

type Colors = ReturnType<typeof createColors>;

/** Whether a stream takes colours: a terminal, unless NO_COLOR is set; FORCE_COLOR forces them. */
function takesColors(stream: { isTTY?: boolean }): boolean {
  if ((process.env["NO_COLOR"] ?? "") !== "") return false;
  const forced = process.env["FORCE_COLOR"];
  if (forced !== undefined && forced !== "") return forced !== "0";
  return stream.isTTY === true && process.env["TERM"] !== "dumb";
}

const clearLine = "\r\u001b[2K";

/** Cuts a line to the terminal's width, so that it can be overwritten. */
function fit(text: string, columns: number): string {
  return text.length < columns ? text : `${text.slice(0, Math.max(columns - 2, 1))}…`;
}

export class Terminal {
  /** For stdout. */
  readonly colors: Colors = createColors(takesColors(process.stdout));
  /** For stderr. */
  readonly errorColors: Colors = createColors(takesColors(process.stderr));
  /** stdout is read by a person. */
  readonly interactive: boolean = Boolean(process.stdout.isTTY);
  readonly #bar: boolean = Boolean(process.stderr.isTTY);
  #drawn = false;
  #drawnAt = 0;

  /** A line for people, on stderr: what is being done. Nothing in a pipe. */
  note(text: string): void {
    if (!this.#bar) return;
    this.#clear();
    process.stderr.write(`${this.errorColors.dim(text)}\n`);
  }

  /** A line that matters in a pipe as well, on stderr. */
  warn(text: string): void {
    this.#clear();
    process.stderr.write(`${this.errorColors.yellow("warning")} ${text}\n`);
  }

  /** A result: text for people, a JSON object on a line of its own in a pipe; both on stdout. */
  result(text: string, record: Record<string, unknown>): void {
    this.#clear();
    process.stdout.write(this.interactive ? `${text}\n` : `${JSON.stringify(record)}\n`);
  }

  /** A JSON line in a pipe, nothing on a terminal. */
  record(record: Record<string, unknown>): void {
    if (!this.interactive) process.stdout.write(`${JSON.stringify(record)}\n`);
  }

  /** Text to stdout as it is. */
  print(text: string): void {
    this.#clear();
    process.stdout.write(text);
  }

  /** Redraws the line of progress, at most ten times a second. `done` and `total` draw a bar before the text. */
  progress(text: string, done?: number, total?: number): void {
    if (!this.#bar) return;
    const now = performance.now();
    if (this.#drawn && now - this.#drawnAt < 100 && done !== total) return;
    this.#drawn = true;
    this.#drawnAt = now;
    const filled = total === undefined ? -1 : Math.round((Math.min(done ?? 0, total) / Math.max(total, 1)) * 24);
    const bar = filled < 0 ? "" : `${"█".repeat(filled)}${"░".repeat(24 - filled)} `;
    process.stderr.write(clearLine + fit(bar + text, process.stderr.columns || 80));
  }

  /** Removes the line of progress. */
  endProgress(): void {
    this.#clear();
  }

  #clear(): void {
    if (this.#drawn) process.stderr.write(clearLine);
    this.#drawn = false;
  }
}

/** "1.5 GB": powers of 1000, as disks and hubs count. */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = bytes;
  let unit = 0;
  while (size >= 999.5 && unit < units.length - 1) {
    size /= 1000;
    unit++;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${units[unit]!}`;
}

/** "1.2 s", "3:05 min", "2:10:00 h". */
export function formatDuration(ms: number): string {
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  const two = (n: number): string => String(n).padStart(2, "0");
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}:${two(seconds % 60)} min`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)} h`;
}
