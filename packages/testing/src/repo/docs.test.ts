import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import {
  checkSnippets,
  readFences,
  readNotebook,
  readSnippets,
  shellCommands,
  snippetText,
  type ShellCommand,
} from "./fences.js";
import * as workspace from "./workspace.js";

const { expectNone, expectSuccess, publicPackages, readText, requireBuild, root, runNode } = workspace;

const documents = workspace
  .repositoryFiles()
  .filter((path) => /^(README[^/]*|docs\/.*|examples\/.*|CONTRIBUTING)\.md$/.test(path))
  .map((path) => ({ path, fences: readFences(path, readText(path)) }));
const snippets = documents.flatMap(({ fences }) => readSnippets(fences));
const notebooks = workspace
  .repositoryFiles()
  .filter((path) => /^examples\/.*\.ipynb$/.test(path))
  .map((path) => readNotebook(path, readText(path)));
const commands = documents.flatMap(({ fences }) =>
  fences.filter(({ language }) => /^(sh|bash|shell|console)$/.test(language)).flatMap(shellCommands),
);

describe("the documents", () => {
  test("every ts block and every notebook type-checks against the packages' sources", () => {
    expectNone("blocks with type errors", checkSnippets([...snippets, ...notebooks]));
  }, 300_000);

  test("every ts block marked run runs against the built packages", async (context) => {
    const runnable = snippets.filter(({ run }) => run);
    if (runnable.length === 0) return;
    requireBuild(context, [...publicPackages, "native"]);
    const folder = `${root}node_modules/.cache/llm-docs`;
    mkdirSync(folder, { recursive: true });
    for (const [index, snippet] of runnable.entries()) {
      const file = `${folder}/block-${index}.ts`;
      writeFileSync(file, snippetText(snippet));
      const cwd = mkdtempSync(join(tmpdir(), "llm-docs-"));
      const finished = await runNode([`${root}tools/run-ts.mjs`, file], { cwd });
      rmSync(cwd, { recursive: true, force: true });
      expectSuccess(`the block at ${snippet.blocks[0]?.path}:${snippet.blocks[0]?.line}`, finished);
    }
  }, 600_000);

  test("npm run names scripts that exist", () => {
    const scripts = (JSON.parse(readText("package.json")) as { scripts: Record<string, string> }).scripts;
    const wrong = commands
      .filter(({ words }) => words[0] === "npm" && words[1] === "run" && !((words[2] ?? "") in scripts))
      .map(({ at, words }) => `${at}: package.json has no script "${words[2]}"`);
    expectNone("unknown scripts", wrong);
  });

  test("llm commands name commands and flags that the command has", async (context) => {
    const ours = commands.filter(({ words }) => words[0] === "llm");
    if (ours.length === 0) return;
    if (!existsSync(`${root}packages/cli/src/main.ts`)) context.skip("packages/cli/src/main.ts does not exist");
    requireBuild(context, publicPackages);
    expectNone("commands that the program does not have", await commandViolations(ours, helpOf));
  });
});

/** Text of `llm … --help`, or undefined when the program refuses. */
async function helpOf(command: readonly string[]): Promise<string | undefined> {
  const finished = await runNode([`${root}packages/cli/dist/main.js`, ...command, "--help"], { cwd: root });
  return finished.code === 0 ? finished.stdout : undefined;
}

/** Words that are no command or flag according to the program's own help. */
async function commandViolations(
  of: readonly ShellCommand[],
  help: (command: readonly string[]) => Promise<string | undefined>,
): Promise<string[]> {
  const known = new Map<string, string | undefined>();
  const read = async (command: readonly string[]): Promise<string | undefined> => {
    const key = command.join(" ");
    if (!known.has(key)) known.set(key, await help(command));
    return known.get(key);
  };
  const lists = (text: string | undefined, word: string): boolean =>
    text !== undefined && new RegExp(`(^|[\\s,|])${word.replace(/[^\w-]/g, "\\$&")}(?![\\w-])`, "m").test(text);

  const violations: string[] = [];
  for (const { at, words } of of) {
    const command: string[] = [];
    const [, first = ""] = words;
    if (first !== "" && !first.startsWith("-")) {
      if (!lists(await read([]), first)) {
        violations.push(`${at}: llm has no command "${first}"`);
        continue;
      }
      command.push(first);
    }
    const text = await read(command);
    if (text === undefined) violations.push(`${at}: "llm ${command.join(" ")} --help" failed`);
    for (const word of words) {
      const flag = /^--?[A-Za-z][\w-]*/.exec(word)?.[0];
      if (flag !== undefined && text !== undefined && flag !== "--help" && !lists(text, flag)) {
        violations.push(`${at}: ${["llm", ...command].join(" ")} has no flag ${flag}`);
      }
    }
  }
  return violations;
}

describe("the reading of documents", () => {
  const text = [
    "Text",
    "```ts run",
    "const a: number = 1;",
    "```",
    "- item",
    "  ```ts continue",
    "  const b: string = a;",
    "  ```",
    "```ts no-check",
    "nonsense(",
    "```",
    "```sh",
    "$ npm run build && llm train --rank 8 \\",
    "  --wrong | tee log  # llm comment",
    "KEY=1 npx llm trian x.jsonl",
    "```",
  ].join("\n");

  test("blocks continue each other, and a type error names the document's line", () => {
    const found = readSnippets(readFences("docs/a.md", text));
    expect(found).toHaveLength(1);
    expect(found[0]?.run).toBe(true);
    expect(checkSnippets(found)).toEqual(["docs/a.md:7: Type 'number' is not assignable to type 'string'."]);
  });

  test("a block sees the packages by name", () => {
    const good = '```ts\nimport { LlmError } from "@llm/core";\nthrow new LlmError("IO", "x");\n```';
    const bad = '```ts\nimport { noSuchExport } from "@llm/core";\n```';
    const found = checkSnippets([good, bad].flatMap((text) => readSnippets(readFences("docs/a.md", text))));
    expect(found).toHaveLength(1);
    expect(found[0]).toContain("noSuchExport");
  });

  test("a notebook's cells are one program, and an error names the cell", () => {
    const cells = ["const a = await Promise.resolve(1);\n", "\nconst b: string = a;"].map((source) => ({
      cell_type: "code",
      source: [source],
    }));
    const notebook = readNotebook("examples/a.ipynb", JSON.stringify({ cells }));
    expect(checkSnippets([notebook])).toEqual([
      "examples/a.ipynb cell 2:2: Type 'number' is not assignable to type 'string'.",
    ]);
  });

  test("an unknown mark is refused", () => {
    expect(() => readSnippets(readFences("docs/a.md", "```ts nocheck\n```"))).toThrow(
      "docs/a.md:2 expected the marks run",
    );
  });

  test("shell blocks yield commands, and unknown commands and flags are found", async () => {
    const fence = readFences("docs/a.md", text).filter(({ language }) => language === "sh");
    const found = fence.flatMap(shellCommands);
    expect(found.map(({ words }) => words[0])).toEqual(["npm", "llm", "tee", "llm"]);
    const help: Record<string, string> = {
      "": "Commands:\n  train [options] <file>\n",
      train: "Options:\n  -r, --rank <number>\n",
    };
    const violations = await commandViolations(
      found.filter(({ words }) => words[0] === "llm"),
      (command) => Promise.resolve(help[command.join(" ")]),
    );
    expect(violations).toEqual([
      "docs/a.md:13: llm train has no flag --wrong",
      'docs/a.md:15: llm has no command "trian"',
    ]);
  });
});
