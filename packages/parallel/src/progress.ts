/** Progress of a run: a bar on a terminal, JSON lines in a pipe. */
import type { StepReport } from "./report.js";

export interface Progress {
  report(report: StepReport): void;
  end(): void;
}

function duration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map((n) =>
    String(n).padStart(2, "0"),
  );
  return (parts[0] === "00" ? parts.slice(1) : parts).join(":");
}

/** One line: bar, step, loss, learning rate, speed, time left. */
export function progressLine(report: StepReport, width = 24): string {
  const filled = Math.round((report.step / report.totalSteps) * width);
  const bar = "█".repeat(filled) + "░".repeat(width - filled);
  const loss = Number.isFinite(report.loss) ? report.loss.toFixed(4) : "–";
  return `${bar} ${report.step}/${report.totalSteps}  loss ${loss}  lr ${report.lr.toExponential(2)}  ${Math.round(report.tokensPerSecond)} tok/s  ${duration(report.etaMs)} left`;
}

/** Lines that a report adds besides its numbers. */
function extras(report: StepReport): string[] {
  const lines: string[] = [];
  if (report.evaluation)
    lines.push(
      `step ${report.step}: evaluation loss ${report.evaluation.loss.toFixed(4)}, perplexity ${report.evaluation.perplexity.toFixed(2)}`,
    );
  for (const { prompt, text } of report.samples ?? [])
    lines.push(`step ${report.step}: ${JSON.stringify(prompt)} → ${JSON.stringify(text)}`);
  if (report.checkpoint !== undefined) lines.push(`step ${report.step}: checkpoint ${report.checkpoint}`);
  return lines;
}

export function createProgress(kind: "auto" | "bar" | "json" | "none", every: number, totalSteps: number): Progress {
  const chosen = kind === "auto" ? (process.stderr.isTTY ? "bar" : "json") : kind;
  if (chosen === "none") return { report: () => {}, end: () => {} };
  if (chosen === "json") {
    return {
      report: (r) => {
        if (r.step % every === 0 || r.step === totalSteps || extras(r).length > 0)
          process.stdout.write(`${JSON.stringify({ type: "step", ...r })}\n`);
      },
      end: () => {},
    };
  }
  let drawn = false;
  let drawnAt = 0;
  const clear = "\r\u001b[2K";
  return {
    report: (r) => {
      const lines = extras(r);
      const now = performance.now();
      if (lines.length === 0 && r.step !== totalSteps && now - drawnAt < 100) return;
      drawnAt = now;
      drawn = true;
      process.stderr.write(clear + lines.map((line) => `${line}\n`).join("") + progressLine(r));
    },
    end: () => {
      if (drawn) process.stderr.write("\n");
    },
  };
}
