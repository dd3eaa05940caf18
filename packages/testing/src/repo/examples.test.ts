import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import ts from "typescript";
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

/** What the Jupyter kernel tslab cannot run (examples/notebooks/README.md) and our own runner can. */
function beyondTslab(cells: readonly string[]): string[] {
  const earlier = new Set<string>();
  const problems: string[] = [];
  for (const [index, source] of cells.entries()) {
    const own = new Set<string>();
    let awaits = 0;
    let forAwaits = 0;
    const say = (what: string): number => problems.push(`cell ${index + 1}: ${what}`);
    const visit = (node: ts.Node, inFunction: boolean): void => {
      const { name } = node as { name?: ts.Node };
      if (ts.isShorthandPropertyAssignment(node)) {
        if (earlier.has(node.name.text) && !own.has(node.name.text)) say(`{ ${node.name.text} } of an earlier cell`);
      } else if (name !== undefined && ts.isIdentifier(name) && !ts.isPropertyAssignment(node)) own.add(name.text);
      if (ts.isVariableDeclarationList(node) && node.getFirstToken()!.getText() === "using") say("a using declaration");
      // An await inside a function is not the cell's own.
      if (ts.isAwaitExpression(node) && !inFunction) awaits++;
      if (ts.isForOfStatement(node) && node.awaitModifier !== undefined && !inFunction) forAwaits++;
      ts.forEachChild(node, (child) => visit(child, inFunction || ts.isFunctionLike(node)));
    };
    visit(ts.createSourceFile("cell.ts", source, ts.ScriptTarget.ESNext, true), false);
    if (forAwaits > 0 && awaits === 0) say("for await without another await");
    for (const name of own) earlier.add(name);
  }
  return problems;
}

describe("notebooks", () => {
  test.for(notebooks)("examples/notebooks/%s keeps to what tslab can do", (file) => {
    const { cells } = JSON.parse(readFileSync(join(folder, file), "utf8")) as {
      cells: { cell_type: string; source: string[] }[];
    };
    const code = cells.filter(({ cell_type: type }) => type === "code");
    expect(beyondTslab(code.map(({ source }) => source.join("")))).toEqual([]);
  });

  test("what tslab cannot do is found", () => {
    expect(
      beyondTslab([
        "const a = 1, b = 2;",
        "console.log({ a, b: b });",
        "const a = 3; console.log({ a });\nconst f = async (b: number) => { await 0; return { b }; };\nfor await (const x of [f(a)]) console.log(x);",
        "using file = open();\nfor await (const x of [1]) await x;",
      ]),
    ).toEqual([
      "cell 2: { a } of an earlier cell",
      "cell 3: for await without another await",
      "cell 4: a using declaration",
    ]);
  });

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
