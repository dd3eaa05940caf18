/**
 * The op cases without a test runner: prints failures and `N passed, N failed`. Bundled into one file it needs only Node and the addon
 * (LLM_NATIVE), so it also runs on a machine without npm.
 * usage: main.js [--device cpu|cuda] [--only text] [--exact op] [--limit elements] [--inline] [--slowest] [--digest] [--list]
 */
import { defaultDevice, type Device, nativeDoctor, setDefaultDevice, setExecution } from "@llm/core";
import { opCases } from "./cases.js";
import { opChecks } from "./checks.js";
import { sizeOf } from "./numbers.js";
import type { CaseResult, OpCase } from "./op-case.js";
import { digestCase, newDigest, runCase, runCheck } from "./run-case.js";

const argument = (name: string): string | undefined => {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + 1];
};

function main(): void {
  const only = argument("--only") ?? "";
  const limit = Number(argument("--limit") ?? Infinity);
  const size = (c: OpCase): number => Math.max(0, ...c.inputs.map((x) => (x ? sizeOf(x.shape) : 0)));
  const exact = argument("--exact");
  const cases = opCases.filter(
    (c) => c.name.includes(only) && (exact === undefined || c.op === exact) && size(c) <= limit,
  );
  const checks = opChecks.filter(
    (c) =>
      (c.name.includes(only) || c.ops.some((op) => op.includes(only))) &&
      (exact === undefined || c.ops.includes(exact)) &&
      !(c.slow && limit < Infinity),
  );
  if (process.argv.includes("--list")) {
    for (const { name } of [...cases, ...checks]) console.log(name);
    return;
  }
  if (process.argv.includes("--inline")) setExecution("inline");
  const device = argument("--device");
  if (device !== undefined) setDefaultDevice(device as Device);
  defaultDevice();
  const { isa, threads, cuda } = nativeDoctor();
  console.log(
    defaultDevice() === "cuda" ? `${cuda?.name}, compute ${cuda?.compute}` : `isa ${isa}, ${threads} threads`,
  );
  if (process.argv.includes("--digest")) {
    const digest = newDigest();
    for (const c of cases) digestCase(c, digest);
    console.log(`digest ${digest.digest("hex")}`);
    return;
  }
  const slowest: [number, string][] = [];
  let [passed, failed] = [0, 0];
  const count = (name: string, run: () => CaseResult): void => {
    const start = performance.now();
    let result: CaseResult;
    try {
      result = run();
    } catch (error) {
      result = {
        name,
        ops: [],
        maxError: Infinity,
        tolerance: 0,
        ok: false,
        detail: error instanceof Error ? error.message : String(error),
      };
    }
    slowest.push([performance.now() - start, name]);
    if (result.ok) passed++;
    else {
      failed++;
      console.log(`FAILED ${name}\n       error ${result.maxError}, tolerance ${result.tolerance}: ${result.detail}`);
    }
  };
  for (const c of cases) count(c.name, () => runCase(c));
  for (const c of checks) count(c.name, () => runCheck(c));
  if (process.argv.includes("--slowest")) {
    for (const [milliseconds, name] of slowest.sort((a, b) => b[0] - a[0]).slice(0, 15))
      console.log(`${milliseconds.toFixed(1).padStart(8)} ms  ${name}`);
  }
  console.log(`${passed} passed, ${failed} failed`);
  if (failed > 0) process.exitCode = 1;
}

main();
