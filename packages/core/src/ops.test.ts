import {
  type CaseResult,
  largestError,
  type Numbers,
  numbers,
  opCases,
  opChecks,
  references,
  runCase,
  runCheck,
} from "@llm/testing";
import { describe, expect, it } from "vitest";
import { native } from "./index.js";

const failures = (results: CaseResult[]): string[] =>
  results.filter((r) => !r.ok).map((r) => `${r.name}\n    error ${r.maxError}, tolerance ${r.tolerance}: ${r.detail}`);

describe("every op of the native table equals its f64 reference", () => {
  for (const op of native.opNames) {
    const cases = opCases.filter((c) => c.op === op);
    const checks = opChecks.filter((c) => c.ops[0] === op);
    it(`${op}: ${cases.length} cases${checks.length > 0 ? `, ${checks.map((c) => c.name).join("; ")}` : ""}`, () => {
      expect(failures([...cases.map((c) => runCase(c)), ...checks.map(runCheck)])).toEqual([]);
    });
  }
});

describe("the list of op cases", () => {
  it("has something for every op, and a reference for every op but the packed ones", () => {
    const covered = new Set([...opCases.map((c) => c.op), ...opChecks.flatMap((c) => c.ops)]);
    expect(native.opNames.filter((op) => !covered.has(op))).toEqual([]);
    expect(native.opNames.filter((op) => !(op in references))).toEqual([
      "repack_w4",
      "linear_w4",
      "repack_q8",
      "linear_q8",
    ]);
    expect([...covered].filter((op) => !native.opNames.includes(op))).toEqual([]);
  });

  it("names every case once", () => {
    const seen = new Map<string, number>();
    for (const { name } of [...opCases, ...opChecks]) seen.set(name, (seen.get(name) ?? 0) + 1);
    expect([...seen].filter(([, n]) => n > 1).map(([name]) => name)).toEqual([]);
  });

  it("says why each tolerance is what it is", () => {
    for (const c of opCases) expect(c.tolerance.reason.length).toBeGreaterThan(20);
  });

  it("measures errors relative to the result, and never forgives a wrong infinity or NaN", () => {
    const f32 = (...data: number[]): Numbers => numbers("f32", [data.length], data);
    expect(largestError(f32(1, 2, 3), f32(1, 2, 3)).error).toBe(0);
    expect(largestError(f32(1.01, -1), f32(1, -1))).toEqual({ error: expect.closeTo(0.005), index: 0 });
    expect(largestError(f32(NaN), f32(0)).error).toBe(Infinity);
    expect(largestError(f32(1e30), f32(Infinity)).error).toBe(Infinity);
    expect(largestError(f32(Infinity), f32(1e30)).error).toBe(Infinity);
    expect(largestError(f32(NaN, -Infinity), f32(NaN, -Infinity)).error).toBe(0);
    // Beyond f16: infinity is the right rounding, not an error.
    expect(largestError(numbers("f16", [1], [Infinity]), numbers("f16", [1], [65520])).error).toBe(0);
  });

  it("fails a case when anything differs", () => {
    const scale = opCases.find((c) => c.op === "scale")!;
    expect(runCase(scale).ok).toBe(true);
    expect(runCase({ ...scale, tolerance: { ...scale.tolerance, f32: 1e-12 } })).toMatchObject({
      ok: false,
      detail: expect.stringContaining("output 0["),
    });
  });
});
