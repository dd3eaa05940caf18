import { expect, test } from "vitest";
import { fileViolations, isChecked, maxLines } from "./file-rules.js";
import { expectNone, readText, repositoryFiles } from "./workspace.js";

test("every file keeps the rules: size, name, no machine paths, addresses or registry hosts", () => {
  const checked = repositoryFiles().filter(isChecked);
  expect(checked.length).toBeGreaterThan(20);
  expectNone(
    "files against the rules",
    checked.flatMap((path) => fileViolations(path, readText(path))),
  );
});

test.each([
  ["packages/core/src/utils.ts", "", "no utils files"],
  ["packages/core/src/RmsNorm.ts", "", "expected a kebab-case name"],
  ["native/core/ops.cpp", "x\n".repeat(maxLines + 1), `expected at most ${maxLines} lines, got ${maxLines + 1}`],
  [
    "packages/core/src/a.ts",
    'const folder = "/home/someone/models";',
    "a.ts:1: no paths of one machine, got /home/someone/models",
  ],
  ["docs/a.md", "\nsee /tmp/x", "a.md:2: no paths of one machine, got /tmp/x"],
  ["tools/a.mjs", "// file:///root/.npmrc", "got /root/.npmrc"],
  ["README.md", `write to ${["someone", "host.org"].join("@")}`, "no e-mail addresses, got someone"],
  ["package-lock.json", `"resolved": "${["https:", "registry.host", "a"].join("//")}.tgz"`, "no registry hosts"],
])("refuses %s", (path, text, message) => {
  const found = fileViolations(path, text);
  expect(found).toHaveLength(1);
  expect(found[0]).toContain(message);
});

test.each([
  ["packages/core/src/shape-rule.ts", "x\n".repeat(maxLines)],
  ["packages/core/src/a.test.ts", 'const missing = "/tmp/none";'],
  ["docs/a.md", "see src/work/a.ts, https://host.example/home/x, user@example.com and typescript@5.0.4"],
])("accepts %s", (path, text) => {
  expect(fileViolations(path, text)).toEqual([]);
});
