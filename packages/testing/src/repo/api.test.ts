import { existsSync, renameSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { apiDifference, readApi, type PackageApi } from "./api.js";
import { expectNone, publicPackages, readText, root } from "./workspace.js";

const path = "packages/testing/src/repo/api.snapshot.json";
const api = readApi(publicPackages);

function current(): Record<string, PackageApi> {
  return Object.fromEntries(
    [...api].map(([name, entries]) => [name, Object.fromEntries([...entries].map(([key, { kind }]) => [key, kind]))]),
  );
}

test("the public exports are the recorded ones; UPDATE_API=1 records them", () => {
  if (process.env["UPDATE_API"] === "1") {
    writeFileSync(`${root}${path}.tmp`, `${JSON.stringify(current(), null, 2)}\n`);
    renameSync(`${root}${path}.tmp`, root + path);
  }
  const stored = existsSync(root + path) ? (JSON.parse(readText(path)) as Record<string, PackageApi>) : {};
  expectNone(
    `the public API differs from ${path}; if meant, add a changeset and run UPDATE_API=1 npx vitest run packages/testing/src/repo/api.test.ts`,
    apiDifference(stored, current()),
  );
});

test("every public export resolves and has a docstring", () => {
  const bare = [...api].flatMap(([name, entries]) =>
    [...entries]
      .filter(([, { kind, documented }]) => !documented || kind === "unresolved")
      .map(([key, { kind }]) => `${name} ${key} (${kind})`),
  );
  expectNone("exports without a docstring", bare);
});

test("the difference names what went and what came", () => {
  const before = { "@llm/core": { a: "function", b: "class" } };
  const after = { "@llm/core": { a: "const", b: "class", c: "type" } };
  expect(apiDifference(before, after)).toEqual([
    "+ @llm/core a: const",
    "- @llm/core a: function",
    "+ @llm/core c: type",
  ]);
  expect(apiDifference(before, before)).toEqual([]);
});
