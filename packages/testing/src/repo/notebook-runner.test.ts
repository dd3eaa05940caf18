import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { root, runNode, type Finished } from "./workspace.js";

const folder = mkdtempSync(join(tmpdir(), "llm-notebook-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let count = 0;
async function runCells(cells: readonly string[], ...flags: string[]): Promise<Finished & { file: string }> {
  const file = join(folder, `cells-${count++}.ipynb`);
  const code = cells.map((source) => ({
    cell_type: "code",
    source: source.split(/(?<=\n)/),
    execution_count: null,
    metadata: {},
    outputs: [],
  }));
  const text = { cell_type: "markdown", source: ["# Title"], metadata: {} };
  writeFileSync(file, JSON.stringify({ cells: [text, ...code], metadata: {}, nbformat: 4, nbformat_minor: 5 }));
  return { ...(await runNode([`${root}tools/run-notebook.mjs`, file, ...flags], { cwd: folder })), file };
}

test("cells share imports, variables, functions and classes, and may await", async () => {
  const finished = await runCells([
    'import { basename, type ParsedPath } from "node:path";\nimport * as os from "node:os";\nimport fs from "node:fs";\n',
    "interface Point { x: number }\nlet total: number = await Promise.resolve(1);\nconst { x, ...others }: Point & { y: number } = { x: 2, y: 3 };\n",
    "function add(by: number): number { total += by; return total; }\nclass Box { constructor(readonly value: number) {} }\n",
    "add(x);\nfor (const i of [1, 2]) add(i);\nconst lazy = await import('node:url');\n",
    "const [first, second = 9] = [new Box(total).value];\nconsole.log(basename('a/b'), typeof os.cpus, typeof fs.readFileSync, first, second, others, typeof lazy.URL);\n",
    "const x = 5;\nlet unset: string | undefined;\nunset ??= 'set';\nconsole.log(x, unset);\ntotal",
  ]);
  expect(finished.stderr).toBe("");
  expect(finished.stdout).toContain("b function function 6 9 { y: 3 } function\n");
  expect(finished.stdout).toContain("5 set\n");
  expect(finished.stdout.trimEnd().endsWith("6")).toBe(true);
  expect(finished.code).toBe(0);
});

test("an error names the cell, shows it and ends the run", async () => {
  const finished = await runCells([
    "const a = 1;",
    "console.log('second');\nthrow new TypeError('went wrong');",
    "console.log('third')",
  ]);
  expect(finished.code).toBe(1);
  expect(finished.stderr).toMatch(/cells-\d+\.ipynb, cell 2 of 3: TypeError: went wrong/);
  expect(finished.stderr).toContain("throw new TypeError");
  expect(finished.stdout).not.toContain("third");
});

test("a syntax error names the cell", async () => {
  const finished = await runCells(["const a = ;"]);
  expect(finished.code).toBe(1);
  expect(finished.stderr).toContain("cell 1 of 1: SyntaxError");
});

test("--write stores the printed text and the last value in the notebook", async () => {
  const finished = await runCells(["console.log('printed');\n40 + 2"], "--write");
  expect(finished.code).toBe(0);
  const notebook = JSON.parse(readFileSync(finished.file, "utf8")) as {
    cells: { outputs?: unknown; execution_count?: number }[];
  };
  expect(notebook.cells[1]?.execution_count).toBe(1);
  expect(notebook.cells[1]?.outputs).toEqual([
    { output_type: "stream", name: "stdout", text: ["printed\n"] },
    { output_type: "execute_result", execution_count: 1, metadata: {}, data: { "text/plain": ["42"] } },
  ]);
});
