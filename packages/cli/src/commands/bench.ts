import { cpus } from "node:os";
import { type Device, defaultDevice, LlmError, nativeDoctor, requireDevice } from "@llm/core";
import * as v from "valibot";
import { type BenchGroup, type BenchUnit, kernelBenches, unitSize } from "../bench/kernels.js";
import { measureStep, stepBench } from "../bench/lora-step.js";
import { measureKernel, type Timing } from "../bench/measure.js";
import { recorded } from "../bench/recorded.js";
import { defineCommand } from "../define-command.js";
import { formatDuration, type Terminal } from "../terminal.js";

const groups = [
  "copy",
  "matmul",
  "attention",
  "rms-norm",
  "swiglu",
  "adamw",
  "lora",
] as const satisfies readonly BenchGroup[];

export const BenchFlags = v.strictObject({
  /** Measure only these. @default all */
  only: v.optional(v.pipe(v.array(v.picklist(groups)), v.minLength(1))),
  /** Fewer runs of each: less exact. @default false */
  quick: v.optional(v.boolean(), false),
  /** Where to measure; "auto" takes a GPU when there is one. @default "auto" */
  device: v.optional(v.picklist(["auto", "cpu", "cuda"]), "auto"),
  /** Print JSON lines also on a terminal. @default false */
  json: v.optional(v.boolean(), false),
});

/** A measurement that is to be taken. */
export interface BenchEntry {
  id: string;
  group: BenchGroup;
  title: string;
  unit: BenchUnit;
  work: number;
  measure(quick: boolean, signal: AbortSignal): Promise<Timing>;
}

/** Everything that is measured on a device. */
export function benchEntries(device: Device): BenchEntry[] {
  const step = stepBench[device];
  return [
    ...kernelBenches(device).map((bench): BenchEntry => ({
      ...bench,
      measure: (quick, signal) => measureKernel(bench, device, quick ? 5 : 30, signal),
    })),
    {
      id: step.id,
      group: "lora",
      title: step.title,
      unit: "tokens/s",
      work: step.sequences * step.length,
      measure: (quick, signal) =>
        measureStep(step, device, quick ? { warmups: 1, steps: 2 } : { warmups: 3, steps: 8 }, signal),
    },
  ];
}

const format = (value: number): string =>
  value.toLocaleString("en", {
    minimumFractionDigits: 0,
    maximumFractionDigits: value < 100 ? 2 : value < 10_000 ? 1 : 0,
  });

/** What the numbers were taken on. */
function machineOf(device: Device): string {
  const native = nativeDoctor();
  if (device === "cuda") return native.cuda!.name;
  return `${cpus()[0]?.model ?? "unknown processor"}, ${native.threads} threads, ${native.isa}`;
}

function chooseDevice(device: "auto" | Device): Device {
  return device === "auto" ? defaultDevice() : requireDevice(device);
}

/** Writes a measurement: a row for people, a JSON line for programs. */
function write(terminal: Terminal, text: string | undefined, record: Record<string, unknown>): void {
  terminal.endProgress();
  if (text === undefined) terminal.print(`${JSON.stringify(record)}\n`);
  else terminal.print(`${text}\n`);
}

export const bench = defineCommand({
  name: "bench",
  description:
    "Measures this machine's GPU, or its CPU when there is none, and prints the numbers beside those we recorded: bandwidth,\nmatrix products, attention, element-wise kernels and a LoRA training step. Medians. Exit code 1 when a measurement failed.",
  arguments: [],
  groups: { own: { title: "Options", schema: BenchFlags, docs: "cli.BenchFlags", complete: true } },
  examples: [
    ["llm bench", "everything, on the GPU if there is one"],
    ["llm bench --only matmul,attention --quick", "two of them, soon"],
    ["llm bench --device cpu --json", "the processor, for programs"],
  ],
  async run({ values: { own }, signal, terminal }) {
    const began = performance.now();
    const device = chooseDevice(own.device);
    const text = terminal.interactive && !own.json;
    const ours = recorded[device];
    const machine = machineOf(device);
    const entries = benchEntries(device).filter(({ group }) => own.only === undefined || own.only.includes(group));
    const widths = [Math.max(...entries.map(({ title }) => title.length)), 18, 18] as const;
    const row = (cells: readonly string[]): string =>
      cells
        .map((cell, i) => (i === 0 ? cell.padEnd(widths[0]) : cell.padStart(widths[i] ?? 0)))
        .join("  ")
        .trimEnd();
    const { bold, dim, red } = terminal.colors;

    const about = `${ours.machine}${ours.commit === null ? ", not recorded yet" : `, commit ${ours.commit}`}`;
    write(
      terminal,
      text ? `here: ${machine}\nrecorded: ${about}\n\n${bold(row(["", "here", "recorded", "ratio"]))}` : undefined,
      { type: "machine", device, machine, recorded: { machine: ours.machine, commit: ours.commit } },
    );
    let failures = 0;
    for (const [index, entry] of entries.entries()) {
      signal.throwIfAborted();
      terminal.progress(entry.title, index, entries.length);
      const { id, title, unit } = entry;
      const reference = ours.values[id] ?? null;
      try {
        const timing = await entry.measure(own.quick, signal);
        const rate = (ms: number): number => entry.work / (ms / 1000) / unitSize[unit];
        const value = rate(timing.medianMs);
        const ratio = reference === null ? null : value / reference;
        const there = reference === null ? "–" : `${format(reference)} ${unit}`;
        write(
          terminal,
          text
            ? row([title, `${format(value)} ${unit}`, there, ratio === null ? "" : `${ratio.toFixed(2)} ×`])
            : undefined,
          { type: "result", id, title, unit, value, best: rate(timing.bestMs), recorded: reference, ratio, ...timing },
        );
      } catch (error) {
        if (!LlmError.isInstance(error)) throw error;
        failures++;
        const { code, message } = error;
        write(terminal, text ? `${row([title])}  ${red("failed")} ${message}` : undefined, {
          type: "result",
          id,
          title,
          unit,
          error: { code, message },
        });
      }
    }
    const elapsedMs = performance.now() - began;
    write(terminal, text ? `\n${dim(formatDuration(elapsedMs))}` : undefined, { type: "done", elapsedMs, failures });
    return failures > 0 ? 1 : 0;
  },
});
