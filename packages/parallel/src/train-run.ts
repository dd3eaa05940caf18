/** A run as its caller sees it: reports to iterate over, and a promise of the end. */
import type { StepReport, TrainResult } from "./report.js";

/**
 * A run that has started. Iterating gives every report from the first on, as often as wanted; leaving the loop early, or never
 * iterating, does not stop the run (use `signal`). A failure rejects `done` and ends the iteration with the error; when neither is
 * used, it is an unhandled rejection.
 */
export class TrainRun implements AsyncIterable<StepReport> {
  /** Reports so far. */
  readonly reports: readonly StepReport[];
  readonly #done: Promise<TrainResult>;
  #watched = false;
  #ended = false;
  #wake: (() => void)[] = [];

  /** Made by `train`. @param start  runs to the end, handing over each report */
  constructor(start: (emit: (report: StepReport) => void) => Promise<TrainResult>) {
    const reports: StepReport[] = [];
    this.reports = reports;
    const emit = (report: StepReport): void => {
      reports.push(report);
      this.#notify();
    };
    this.#done = start(emit).finally(() => {
      this.#ended = true;
      this.#notify();
    });
    this.#done.catch((error: unknown) => {
      if (!this.#watched) void Promise.reject(error);
    });
  }

  /** Resolves when the run has ended. */
  get done(): Promise<TrainResult> {
    this.#watched = true;
    return this.#done.then((result) => result);
  }

  #notify(): void {
    const waiting = this.#wake;
    this.#wake = [];
    for (const wake of waiting) wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<StepReport, void, undefined> {
    this.#watched = true;
    for (let at = 0; ;) {
      while (at < this.reports.length) yield this.reports[at++]!;
      if (this.#ended) break;
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
    await this.#done;
  }
}
