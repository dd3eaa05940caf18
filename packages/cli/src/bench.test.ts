import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { devices, memory, nativeDoctor, setMemoryLimit } from "@llm/core";
import { describe, expect, test } from "vitest";
import { llm, records } from "../test/run-llm.js";
import { kernelBenches } from "./bench/kernels.js";
import { measureStep, stepBench } from "./bench/lora-step.js";
import { timingOf } from "./bench/measure.js";
import { recorded } from "./bench/recorded.js";
import { benchEntries } from "./commands/bench.js";

const never = new AbortController().signal;

describe("recorded numbers", () => {
  test.each(devices)("of %s: one for each measurement, and none for others", (device) => {
    const ids = benchEntries(device).map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(Object.keys(recorded[device].values).sort()).toEqual([...ids].sort());
  });

  test.each(devices)("of %s are those of docs/benchmarks.md, with their commit", (device) => {
    const page = readFileSync(fileURLToPath(new URL("../../../docs/benchmarks.md", import.meta.url)), "utf8");
    const { commit, values } = recorded[device];
    const numbers = Object.values(values).filter((value) => value !== null);
    expect(numbers.length > 0).toBe(commit !== null);
    if (commit !== null) expect(page).toContain(commit);
    for (const value of numbers) expect(page).toContain(value.toLocaleString("en", { maximumFractionDigits: 2 }));
  });
});

test("a profile knows the measured ops by these names", () => {
  const ops = Object.keys(nativeDoctor().kernels);
  for (const device of devices) for (const { op } of kernelBenches(device)) expect(ops).toContain(op);
});

test("the median and the best of some times", () => {
  expect(timingOf([5, 1, 3])).toEqual({ medianMs: 3, bestMs: 1, runs: 3 });
});

describe("llm bench", () => {
  test("prints JSON lines in a pipe: the machine, a line a measurement, done", { timeout: 120_000 }, async () => {
    const before = memory("cpu").liveBytes;
    const { code, stdout, stderr } = await llm("bench", "--device", "cpu", "--quick", "--only", "matmul,attention");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const [machine, ...rest] = records(stdout);
    expect(machine).toMatchObject({ type: "machine", device: "cpu", recorded: { commit: recorded.cpu.commit } });
    expect(rest.pop()).toMatchObject({ type: "done", failures: 0 });
    expect(rest.map(({ id }) => id)).toEqual(["matmul-1024", "matmul-512x4864x896", "attention", "attention-backward"]);
    for (const { unit, value, best, medianMs, bestMs, runs } of rest as Record<string, number>[]) {
      expect(unit).toBe("GFLOP/s");
      expect(runs).toBe(5);
      expect(bestMs).toBeGreaterThan(0);
      expect(medianMs).toBeGreaterThanOrEqual(bestMs!);
      expect(best).toBeGreaterThanOrEqual(value!);
    }
    const first = rest[0] as { value: number; medianMs: number; ratio: number };
    expect(first.value).toBeCloseTo((2 * 1024 ** 3) / (first.medianMs / 1000) / 1e9, 6);
    expect(first.ratio).toBeCloseTo(first.value / recorded.cpu.values["matmul-1024"]!, 9);
    expect(rest[2].recorded).toBe(recorded.cpu.values["attention"]);
    expect(memory("cpu").liveBytes).toBe(before);
  });

  test("bandwidth counts every byte that is read and written", { timeout: 120_000 }, async () => {
    const { stdout } = await llm("bench", "--device", "cpu", "--quick", "--only", "rms-norm", "--only", "swiglu");
    const results = records(stdout).filter(({ type }) => type === "result") as {
      id: string;
      value: number;
      medianMs: number;
    }[];
    const bytes = Object.fromEntries(results.map(({ id, value, medianMs }) => [id, value * 1e6 * medianMs]));
    expect(bytes["rms-norm"]).toBeCloseTo(16_384 * (2 * 896 * 4 + 4), -3);
    expect(bytes["rms-norm-backward"]).toBeCloseTo(16_384 * (3 * 896 * 4 + 4), -3);
    expect(bytes["swiglu"]).toBeCloseTo(3 * 2048 * 4864 * 4, -3);
    expect(bytes["swiglu-backward"]).toBeCloseTo(5 * 2048 * 4864 * 4, -3);
  });

  test("what does not fit is a failed line, and the rest goes on, code 1", { timeout: 120_000 }, async () => {
    setMemoryLimit(memory("cpu").liveBytes + 2 ** 26, "cpu");
    try {
      const { code, stdout } = await llm("bench", "--device", "cpu", "--quick", "--only", "copy,matmul");
      expect(code).toBe(1);
      const [, copy, matmul, , done] = records(stdout);
      expect(copy).toMatchObject({ id: "copy", error: { code: "OUT_OF_MEMORY" } });
      expect(matmul).toMatchObject({ id: "matmul-1024", value: expect.any(Number) });
      expect(done).toMatchObject({ type: "done", failures: 1 });
    } finally {
      setMemoryLimit(0, "cpu");
    }
  });

  test("an unknown measurement is refused", async () => {
    expect(await llm("bench", "--only", "latency")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("--only: expected copy|matmul|"),
    });
  });
});

test("a LoRA step is timed, and everything it made is freed", async () => {
  const config = {
    ...stepBench.cpu.config,
    hidden_size: 32,
    intermediate_size: 48,
    num_attention_heads: 4,
    vocab_size: 512,
  };
  const before = memory("cpu").liveBytes;
  const tiny = { ...stepBench.cpu, config, rank: 4, sequences: 2, length: 16 };
  const timing = await measureStep(tiny, "cpu", { warmups: 1, steps: 3 }, never);
  expect(timing.runs).toBe(3);
  expect(timing.bestMs).toBeGreaterThan(0);
  expect(memory("cpu").liveBytes).toBe(before);
  const stopped = AbortSignal.abort(new Error("interrupted"));
  await expect(measureStep(tiny, "cpu", { warmups: 1, steps: 3 }, stopped)).rejects.toThrow("interrupted");
  expect(memory("cpu").liveBytes).toBe(before);
});
