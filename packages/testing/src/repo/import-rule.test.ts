import { describe, expect, test } from "vitest";
import { importViolations, type SourceFile } from "./import-rule.js";
import { expectNone, packages, readManifest, readText, repositoryFiles, type Manifest } from "./workspace.js";

const rootManifest = readManifest("");
const files = repositoryFiles();

describe("the import graph", () => {
  test.each(packages)("$name imports what it may, and lists what it imports", ({ folder, manifest }) => {
    const sources = files
      .filter((path) => new RegExp(`^packages/${folder}/(src|test)/.*\\.ts$`).test(path))
      .map((path) => ({ path, text: readText(path) }));
    expect(sources.length).toBeGreaterThan(0);
    expectNone("imports against the rules", importViolations(folder, manifest, rootManifest, sources));
  });
});

describe("the import rule itself", () => {
  const manifest: Manifest = { name: "@llm/data", version: "0", dependencies: { "@llm/core": "0", valibot: "1" } };
  const check = (text: string, path = "packages/data/src/a.ts", of = manifest): string[] => {
    const file: SourceFile = { path, text };
    return importViolations("data", of, rootManifest, [file]);
  };
  const clean = `import { Tensor } from "@llm/core";\nimport * as v from "valibot";\n`;

  test("accepts what is allowed and listed", () => {
    expect(check(`${clean}import { b } from "./b.js";\nimport { readFileSync } from "node:fs";\n`)).toEqual([]);
  });

  test.each([
    [`import { a } from "@llm/lora";`, "a.ts:3 data may import core, models"],
    [`export { a } from "@llm/models";`, '"@llm/models" is not in packages/data/package.json'],
    [`const m = await import("@llm/serve");`, "data may import core, models"],
    [`import { a } from "@llm/core/dist/tensor.js";`, 'only the entry "@llm/core" is public'],
    [`import { a } from "../../core/src/tensor.js";`, "leaves its package"],
    [`import { a } from "./b";`, "expected a .js suffix"],
    [`import { join } from "path";`, 'expected "node:path"'],
    [`import { parse } from "csv-parse";`, '"csv-parse" is not in packages/data/package.json'],
    [`import { test } from "vitest";`, '"vitest" is not in packages/data/package.json'],
  ])("refuses %s", (line, message) => {
    const found = check(`${clean}${line}\n`);
    expect(found).toHaveLength(1);
    expect(found[0]).toContain(message);
  });

  test("refuses a listed dependency that nothing imports", () => {
    expect(check(`import "valibot";`)).toEqual([
      'packages/data/package.json lists "@llm/core", which no source file imports',
    ]);
  });

  test("a test file may import the test kit, other packages and development dependencies, and counts as no use", () => {
    const text = `import { test } from "vitest";\nimport { a } from "@llm/testing";\nimport { b } from "@llm/parallel";\nimport { c } from "../test/c.js";\n`;
    const found = check(text + clean, "packages/data/src/a.test.ts");
    expect(found).toHaveLength(2);
    expect(found.every((line) => line.includes("no source file imports"))).toBe(true);
  });

  test("refuses a package that the graph does not know", () => {
    expect(importViolations("utilities", manifest, rootManifest, [])[0]).toContain("not in the import graph");
  });
});
