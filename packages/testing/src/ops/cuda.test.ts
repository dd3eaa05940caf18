import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cudaProblem, nativeDoctor } from "@llm/core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSuccess, root, runNode } from "../repo/workspace.js";
import { opCases } from "./cases.js";
import { opChecks } from "./checks.js";

const problem = cudaProblem();
if (problem !== null) console.warn(`skipped: op cases on the GPU: ${problem}`);

const folder = mkdtempSync(join(tmpdir(), "llm-cuda-ops-"));
const program = join(folder, "ops.mjs");
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs the bundled op cases on the GPU in a process of their own: a kernel that breaks the device takes only that process along. */
async function ops(...args: string[]): Promise<string> {
  const finished = await runNode([program, "--device", "cuda", ...args], {
    cwd: root,
    env: { ...process.env, LLM_NATIVE: nativeDoctor().path, LLM_CUDA_PLUGIN: plugin() },
    timeoutMs: 600_000,
  });
  expectSuccess(`the op cases on the GPU (${args.join(" ") || "all"})`, finished);
  return finished.stdout;
}

const plugin = (): string => process.env["LLM_CUDA_PLUGIN"] ?? `${root}native/npm/linux-x64-cuda/libllm_cuda.so`;

describe.skipIf(problem !== null)("on the GPU", () => {
  beforeAll(async () => {
    const bundled = await runNode([`${root}tools/bundle.mjs`, "packages/testing/src/ops/main.ts", program], {
      cwd: root,
    });
    expectSuccess("bundling the op cases", bundled);
  });

  it("every op has a kernel", () => {
    expect(nativeDoctor().cuda?.missingKernels).toEqual([]);
  });

  it("every op case and check passes", { timeout: 600_000 }, async () => {
    const output = await ops();
    expect(output).toMatch(/, compute \d+$/m);
    expect(output).toMatch(new RegExp(`^${opCases.length + opChecks.length} passed, 0 failed$`, "m"));
  });

  it("the same inputs give the same bits in every run", { timeout: 600_000 }, async () => {
    const digest = async (): Promise<string | undefined> => /^digest (\w+)$/m.exec(await ops("--digest"))?.[1];
    const first = await digest();
    expect(first).toMatch(/^[0-9a-f]{64}$/);
    expect(await digest()).toBe(first);
  });
});
