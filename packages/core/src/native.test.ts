import { spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "tsup";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { nativeDoctor } from "./index.js";

const scratch = mkdtempSync(join(tmpdir(), "core-native-"));
const core = pathToFileURL(join(scratch, "index.mjs")).href;
const copy = pathToFileURL(join(scratch, "copy.mjs")).href;

beforeAll(async () => {
  // The package in one file: programs start at once, and a second copy is a second file.
  const entry = { index: fileURLToPath(new URL("./index.ts", import.meta.url)) };
  await build({
    config: false,
    entry,
    outDir: scratch,
    format: "esm",
    target: "node20",
    silent: true,
    clean: false,
    noExternal: [/./],
    outExtension: () => ({ js: ".mjs" }),
  });
  copyFileSync(new URL(core), new URL(copy));
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Runs a program in a process of its own; what it prints, as JSON. */
function run(program: string, env: Record<string, string> = {}): unknown {
  const file = join(scratch, "program.mjs");
  writeFileSync(file, program);
  const { stdout, stderr, status, signal } = spawnSync(process.execPath, [file], {
    encoding: "utf8",
    env: { ...process.env, LLM_NATIVE: nativeDoctor().path, ...env },
  });
  if (status !== 0) throw new Error(`status ${status}, signal ${signal}\n${stderr}`);
  return JSON.parse(stdout);
}

describe("loading the native core", () => {
  it("a second copy of the package in the process is a DUPLICATE_CORE error that names both", () => {
    const result = run(`
      import { LlmError, nativeDoctor } from "${core}";
      import { nativeDoctor as other } from "${copy}";
      nativeDoctor();
      try {
        other();
      } catch (error) {
        console.log(JSON.stringify({ code: error.code, message: error.message, branded: LlmError.isInstance(error, "DUPLICATE_CORE") }));
      }`);
    expect(result).toEqual({
      code: "DUPLICATE_CORE",
      message: `[core] two copies of @llm/core are loaded: ${core} and ${copy}; run "npm dedupe" so that all packages share one`,
      branded: true,
    });
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
    expect(run(program, { LLM_NATIVE: join(scratch, "broken.node") })).toMatchObject({
      code: "NATIVE_MISSING",
      message: expect.stringContaining("broken.node"),
    });
  });

  it("says which instruction set it runs, and takes a lower one from LLM_CPU_ISA", () => {
    const program = `import { nativeDoctor } from "${core}"; console.log(JSON.stringify(nativeDoctor()));`;
    expect(run(program, { LLM_CPU_ISA: "scalar" })).toMatchObject({
      isa: "scalar",
      detectedIsa: nativeDoctor().detectedIsa,
    });
  });

  it("a process may end while commands are queued and running", () => {
    const result = run(`
      import { native, noGrad, scope, tensor } from "${core}";
      noGrad(() => scope(() => {
        const x = tensor(new Float32Array(256 * 256), [256, 256]);
        for (let i = 0; i < 3000; i++) native.matmul(native.softmax(x), x, null, 0, 0, 0).dispose();
      }));
      console.log(1);
      process.exit(0);`);
    expect(result).toBe(1);
  });
});
