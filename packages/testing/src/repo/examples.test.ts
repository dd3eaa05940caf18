import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { expectSuccess, publicPackages, requireBuild, root, runNode } from "./workspace.js";

const slow = process.env["LLM_SLOW"] === "1";
const examples = readdirSync(`${root}examples`).filter((file) => file.endsWith(".ts") && !file.startsWith("."));

describe("examples", () => {
  test("the quickstart is one of them", () => {
    expect(examples).toContain("quickstart.ts");
  });

  test.for(examples)("examples/%s runs", { timeout: 660_000 }, async (file, context) => {
    const quickstart = file === "quickstart.ts";
    if (quickstart && !slow) context.skip("takes minutes; LLM_SLOW=1 runs it");
    requireBuild(context, [...publicPackages, "native"]);
    const cwd = mkdtempSync(join(tmpdir(), "llm-example-"));
    try {
      const timeoutMs = quickstart ? 600_000 : 60_000;
      const finished = await runNode([`${root}tools/run-ts.mjs`, `${root}examples/${file}`], { cwd, timeoutMs });
      expectSuccess(`examples/${file}`, finished);
      expect(finished.stdout.trim(), "an example shows something").not.toBe("");
    } finally {
      rmSync(cwd, { recursive: true, force: true });
    }
  });
});

const folder = `${root}examples/notebooks`;
const notebooks = existsSync(folder) ? readdirSync(folder).filter((file) => file.endsWith(".ipynb")) : [];

describe("notebooks", () => {
  test("there is one at least", () => {
    expect(notebooks.length).toBeGreaterThan(0);
  });

  test.for(notebooks)("examples/notebooks/%s runs", { timeout: 130_000 }, async (file, context) => {
    requireBuild(context, [...publicPackages, "native"]);
    const cwd = mkdtempSync(join(tmpdir(), "llm-notebook-"));
    try {
      const finished = await runNode([`${root}tools/run-notebook.mjs`, join(folder, file)], {
        cwd,
        timeoutMs: 120_000,
      });
      expectSuccess(`examples/notebooks/${file}`, finished);
    } finally {
      rmSync(cwd, { recursive: true, force: true });
    }
  });
});

describe("the runner of examples", () => {
  test("says which example failed, with its output", async () => {
    const finished = await runNode(["--eval", 'console.log("step 1"); throw new Error("no such model");'], {
      cwd: root,
    });
    expect(() => expectSuccess("examples/x.ts", finished)).toThrow(
      /examples\/x\.ts exited with 1[\s\S]*step 1[\s\S]*no such model/,
    );
  });

  test("ends an example that takes too long", async () => {
    const finished = await runNode(["--eval", "setInterval(() => {}, 1000)"], { cwd: root, timeoutMs: 300 });
    expect(() => expectSuccess("examples/x.ts", finished)).toThrow(/was killed after \d+ ms/);
  });
});
