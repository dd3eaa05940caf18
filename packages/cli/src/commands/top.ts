import { setTimeout as sleep } from "node:timers/promises";
import * as v from "valibot";
import { defineCommand } from "../define-command.js";
import { findNvidiaSmi, type GpuState, readGpus } from "../nvidia-smi.js";
import { formatBytes, type Terminal } from "../terminal.js";

export const TopFlags = v.strictObject({
  /** Print the state once and end. @default false */
  once: v.optional(v.boolean(), false),
  /** Print JSON lines also on a terminal. @default false */
  json: v.optional(v.boolean(), false),
});

const everyMs = 1000;

// A second screen, so that the terminal's own text comes back; the cursor hidden. Drawing starts at the top left.
const enterScreen = "\u001b[?1049h\u001b[?25l";
const leaveScreen = "\u001b[?25h\u001b[?1049l";
const redraw = "\u001b[H\u001b[J";

const number = (value: number | null, digits = 0): string => (value === null ? "–" : value.toFixed(digits));
const bytes = (value: number | null): string => (value === null ? "–" : formatBytes(value));

function bar(used: number | null, total: number | null): string {
  if (used === null || total === null || total <= 0) return "";
  const filled = Math.round(Math.min(used / total, 1) * 12);
  return `${"█".repeat(filled)}${"░".repeat(12 - filled)} `;
}

/** The table of `llm top`: a line a card, and below it one a process. */
export function topTable(gpus: readonly GpuState[], colors: Pick<Terminal["colors"], "bold" | "dim">): string {
  const head = ["gpu", "name", "memory", "use", "power", "temp", "clock", "memory clock"];
  const cells = gpus.map((gpu) => [
    String(gpu.index),
    gpu.name,
    `${bar(gpu.memoryUsedBytes, gpu.memoryTotalBytes)}${bytes(gpu.memoryUsedBytes)} / ${bytes(gpu.memoryTotalBytes)}`,
    `${number(gpu.utilizationPercent)} %`,
    `${number(gpu.powerWatts)} / ${number(gpu.powerLimitWatts)} W`,
    `${number(gpu.temperatureC)} °C`,
    `${number(gpu.clockMHz)} / ${number(gpu.clockMaxMHz)} MHz`,
    `${number(gpu.memoryClockMHz)} MHz`,
  ]);
  const widths = head.map((name, column) => Math.max(name.length, ...cells.map((row) => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join("  ")
      .trimEnd();
  const lines = [colors.bold(line(head))];
  for (const [index, gpu] of gpus.entries()) {
    lines.push(line(cells[index]!));
    const pid = Math.max(...gpu.processes.map((one) => String(one.pid).length));
    for (const one of [...gpu.processes].sort((a, b) => (b.memoryUsedBytes ?? 0) - (a.memoryUsedBytes ?? 0)))
      lines.push(
        colors.dim(`     ${String(one.pid).padStart(pid)}  ${bytes(one.memoryUsedBytes).padStart(7)}  ${one.name}`),
      );
  }
  return lines.join("\n");
}

export const top = defineCommand({
  name: "top",
  description:
    "Shows NVIDIA GPUs every second until Ctrl-C: memory, use, power, temperature, clocks, and the processes on them. In a pipe it\nis one JSON line a second. The numbers are nvidia-smi's, which comes with the driver.",
  arguments: [],
  groups: { own: { title: "Options", schema: TopFlags, docs: "cli.TopFlags", complete: true } },
  examples: [
    ["llm top", "a live table"],
    ["llm top --once", "the state now"],
    ["llm top --json > gpus.jsonl", "a record of a run"],
  ],
  async run({ values: { own }, signal, terminal }) {
    const program = findNvidiaSmi();
    const text = terminal.interactive && !own.json;
    const live = text && !own.once;
    let entered = false;
    try {
      while (!signal.aborted) {
        const began = performance.now();
        const gpus = await readGpus(program, signal);
        if (live) {
          terminal.print(`${entered ? "" : enterScreen}${redraw}${topTable(gpus, terminal.colors)}\n\nCtrl-C stops\n`);
          entered = true;
        } else if (text) terminal.print(`${topTable(gpus, terminal.colors)}\n`);
        else terminal.print(`${JSON.stringify({ type: "gpus", time: new Date().toISOString(), gpus })}\n`);
        if (own.once) break;
        await sleep(Math.max(0, everyMs - (performance.now() - began)), undefined, { signal });
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      if (entered) terminal.print(leaveScreen);
    }
    // Ctrl-C is how one leaves.
    return 0;
  },
});
