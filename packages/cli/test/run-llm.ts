import { vi } from "vitest";
import { runCli, Stop } from "../src/run.js";

export interface Finished {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface Running {
  /** What was written so far. */
  written: { stdout: string; stderr: string };
  /** As Ctrl-C does. */
  interrupt(): void;
  finished: Promise<Finished>;
}

/** Starts a command in this process; what it writes is kept. One at a time. */
export function startLlm(...words: string[]): Running {
  const written = { stdout: "", stderr: "" };
  const spies = (["stdout", "stderr"] as const).map((name) =>
    vi.spyOn(process[name], "write").mockImplementation((chunk) => {
      written[name] += String(chunk);
      return true;
    }),
  );
  const stop = new Stop();
  const finish = async (): Promise<Finished> => {
    try {
      return { code: await runCli(words, stop), ...written };
    } finally {
      for (const spy of spies) spy.mockRestore();
    }
  };
  return {
    written,
    interrupt: () => {
      stop.interrupted = true;
      stop.controller.abort(new Error("interrupted"));
    },
    finished: finish(),
  };
}

/** Runs a command in this process. */
export const llm = (...words: string[]): Promise<Finished> => startLlm(...words).finished;

/** The JSON lines of a text. */
export const records = (text: string): Record<string, unknown>[] =>
  text
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Record<string, unknown>);
