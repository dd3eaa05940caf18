import { execFile, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bundle } from "../test/bundle.js";
import { nativeDoctor } from "./index.js";

const run = promisify(execFile);
const variants = ["scalar", "avx2", "avx512", "avx512bf16", "amx"];

let packed: Awaited<ReturnType<typeof bundle>>;
beforeAll(async () => {
  packed = await bundle(new URL("../../testing/src/ops/main.ts", import.meta.url));
});
afterAll(() => packed.remove());

/** Runs the bundled op cases in a process of their own. */
const ops = async (env: Record<string, string>, ...args: string[]): Promise<string> => {
  const { path } = nativeDoctor();
  try {
    return (
      await run(process.execPath, [packed.file, ...args], {
        env: { PATH: process.env["PATH"], LLM_NATIVE: path, ...env },
      })
    ).stdout;
  } catch (error) {
    throw new Error(`${(error as { stdout?: string }).stdout}\n${(error as Error).message}`, { cause: error });
  }
};

describe("the op cases, bundled into one file", () => {
  const { detectedIsa } = nativeDoctor();
  it.each(variants.slice(0, variants.indexOf(detectedIsa) + 1))("pass with the %s kernels", async (isa) => {
    const output = await ops({ LLM_CPU_ISA: isa }, "--limit", "6000", "--inline");
    expect(output).toMatch(new RegExp(`^isa ${isa},`));
    expect(Number(/(\d+) passed, 0 failed/.exec(output)?.[1])).toBeGreaterThan(800);
  });

  it("give the same bits with one thread, two and three", async () => {
    const digest = async (threads: number): Promise<string | undefined> => {
      const output = await ops({ LLM_NUM_THREADS: String(threads) }, "--digest", "--inline");
      expect(output).toContain(`, ${threads} thread`);
      return /^digest (\w+)$/m.exec(output)?.[1];
    };
    const one = await digest(1);
    expect(one).toMatch(/^[0-9a-f]{64}$/);
    expect(await digest(2)).toBe(one);
    expect(await digest(3)).toBe(one);
  });

  it("say so when an instruction set or a number of threads is not to be had", () => {
    const refused = (env: Record<string, string>): string => {
      const { status, stderr } = spawnSync(process.execPath, [packed.file, "--limit", "1"], {
        env: { PATH: process.env["PATH"], LLM_NATIVE: nativeDoctor().path, ...env },
        encoding: "utf8",
      });
      expect(status).toBe(1);
      return stderr;
    };
    expect(refused({ LLM_CPU_ISA: "sse9" })).toContain(
      'LLM_CPU_ISA must be scalar, avx2, avx512, avx512bf16 or amx, got "sse9"',
    );
    expect(refused({ LLM_NUM_THREADS: "many" })).toContain(
      'OptionsError: [threads] LLM_NUM_THREADS must be an integer from 1 to 1024, got "many"',
    );
    expect(refused({ LLM_NATIVE: "/nowhere/llm.node" })).toMatch(/\/nowhere\/llm\.node: no such file/);
  });

  it.runIf(process.env["LLM_SLOW"] === "1")(
    "are free of memory errors and undefined behaviour under the sanitizers",
    { timeout: 1_800_000 },
    () => {
      const script = fileURLToPath(new URL("../../../native/scripts/sanitize.mjs", import.meta.url));
      const { status, stdout, stderr } = spawnSync(process.execPath, [script], { encoding: "utf8" });
      expect(`${stdout}\n${stderr}`).toMatch(/\d+ passed, 0 failed/);
      expect(status, `${stdout}\n${stderr}`).toBe(0);
    },
  );
});
