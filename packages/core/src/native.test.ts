import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { nativeDoctor } from "./index.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const core = new URL("./index.ts", import.meta.url).href;
const scratch = mkdtempSync(join(tmpdir(), "core-native-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Runs a program against the sources in a process of its own; what it prints, as JSON. */
function run(program: string, env: Record<string, string> = {}, flags: string[] = []): unknown {
  const file = join(scratch, `program-${Math.random().toString(36).slice(2)}.ts`);
  writeFileSync(file, program);
  const { stdout, stderr, status, signal } = spawnSync(process.execPath, [...flags, join(root, "tools/run-ts.mjs"), file], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, LLM_FROM_SOURCE: "1", LLM_NATIVE: nativeDoctor().path, ...env },
  });
  if (status !== 0) throw new Error(`status ${status}, signal ${signal}\n${stderr}`);
  return JSON.parse(stdout);
}

describe("loading the native core", () => {
  it("a second copy of the package in the process is a DUPLICATE_CORE error that names both", () => {
    // Beside the first copy, where Node still finds its dependencies.
    const copy = mkdtempSync(join(root, "node_modules/.core-copy-"));
    try {
      cpSync(fileURLToPath(new URL(".", core)), copy, { recursive: true });
      const result = run(`
        import { LlmError, nativeDoctor } from "${core}";
        import { nativeDoctor as other } from "${copy}/index.ts";
        nativeDoctor();
        try {
          other();
        } catch (error) {
          console.log(JSON.stringify({ code: error.code, message: error.message, branded: LlmError.isInstance(error, "DUPLICATE_CORE") }));
        }`) as Record<string, string>;
      expect(result).toMatchObject({ code: "DUPLICATE_CORE", branded: true });
      expect(result["message"]).toContain(`/packages/core/src/native.ts and file://${copy}/native.ts; run "npm dedupe"`);
    } finally {
      rmSync(copy, { recursive: true, force: true });
    }
  });

  it("an addon that is absent or is no addon is a NATIVE_MISSING error that says what to do, and import alone loads nothing", () => {
    const program = `
      import { LlmError, memory } from "${core}";
      let code = "";
      let message = "";
      try {
        memory();
      } catch (error) {
        if (LlmError.isInstance(error)) ({ code, message } = error);
      }
      console.log(JSON.stringify({ code, message }));`;
    const absent = run(program, { LLM_NATIVE: join(scratch, "nothing.node") }) as Record<string, string>;
    expect(absent["code"]).toBe("NATIVE_MISSING");
    expect(absent["message"]).toMatch(/nothing\.node: no such file[^]*npm run build/);
    writeFileSync(join(scratch, "broken.node"), "no machine code");
    expect(run(program, { LLM_NATIVE: join(scratch, "broken.node") })).toMatchObject({ code: "NATIVE_MISSING", message: expect.stringContaining("broken.node") });
  });

  it("says which instruction set it runs, and takes a lower one from LLM_CPU_ISA", () => {
    const program = `import { nativeDoctor } from "${core}"; console.log(JSON.stringify(nativeDoctor()));`;
    expect(run(program, { LLM_CPU_ISA: "scalar" })).toMatchObject({ isa: "scalar", detectedIsa: nativeDoctor().detectedIsa });
  });
});

describe("worker threads", () => {
  it("share the core: they compute at the same time as the main thread, and one that ends frees only its own tensors", () => {
    const worker = join(scratch, "worker.ts");
    writeFileSync(
      worker,
      `
      import { parentPort, workerData } from "node:worker_threads";
      import { matmul, scope, tensor } from "${core}";
      const a = tensor(Float32Array.from({ length: 64 * 64 }, (_, i) => (i % 7) - 3), [64, 64]);
      let sum = 0;
      for (let i = 0; i < workerData.rounds; i++) sum = scope(() => matmul(a, a).dataSync().reduce((x, y) => x + y, 0));
      globalThis.leftBehind = Array.from({ length: 5 }, () => tensor(new Float32Array(1000)).keep());
      parentPort.postMessage(sum);`,
    );
    const result = run(
      `
      import { Worker } from "node:worker_threads";
      import { matmul, memory, scope, synchronize, tensor } from "${core}";
      const a = tensor(Float32Array.from({ length: 64 * 64 }, (_, i) => (i % 7) - 3), [64, 64]);
      const mine = () => scope(() => matmul(a, a).dataSync().reduce((x, y) => x + y, 0));
      const expected = mine();
      const before = memory().liveTensors;
      const start = () => {
        const worker = new Worker("${join(root, "tools/run-ts.mjs")}", { argv: ["${worker}"], workerData: { rounds: 50 } });
        return new Promise((resolve, reject) => {
          let sum;
          worker.on("message", (value) => (sum = value));
          worker.on("error", reject);
          worker.on("exit", () => resolve(sum));
        });
      };
      const workers = [start(), start()];
      const sums = [];
      const timer = setInterval(() => sums.push(mine()), 1);
      const theirs = await Promise.all(workers);
      clearInterval(timer);
      synchronize();
      console.log(JSON.stringify({ expected, theirs, mine: [...new Set(sums)], grown: memory().liveTensors - before, after: mine() }));`,
    ) as { expected: number; theirs: number[]; mine: number[]; grown: number; after: number };
    expect(result.theirs).toEqual([result.expected, result.expected]);
    expect(result.mine).toEqual([result.expected]);
    expect(result.after).toBe(result.expected);
    expect(result.grown).toBe(0);
  });
});
