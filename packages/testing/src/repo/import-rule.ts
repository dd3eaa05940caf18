import { builtinModules } from "node:module";
import { posix } from "node:path";
import ts from "typescript";
import type { Manifest } from "./workspace.js";

/**
 * Which packages a package may import. The rows meet in types owned by core and models, never in each other; serve is the
 * one exception and the command sits on top.
 */
export const mayImport: Readonly<Record<string, readonly string[]>> = {
  core: [],
  models: ["core"],
  data: ["core", "models"],
  lora: ["core", "models"],
  distill: ["core", "models"],
  "quant-awq": ["core", "models"],
  kvcache: ["core", "models"],
  parallel: ["core", "models"],
  eval: ["core", "models"],
  serve: ["core", "models", "kvcache", "parallel"],
  cli: ["core", "models", "data", "lora", "distill", "quant-awq", "kvcache", "parallel", "eval", "serve"],
  testing: ["core", "models"],
};

/** A source file of a package. */
export interface SourceFile {
  /** Path relative to the root: `packages/core/src/tensor.ts`. */
  readonly path: string;
  readonly text: string;
}

interface Import {
  readonly specifier: string;
  readonly line: number;
}

function importsOf(file: SourceFile): Import[] {
  return ts.preProcessFile(file.text, true, true).importedFiles.map(({ fileName, pos }) => ({
    specifier: fileName,
    line: file.text.slice(0, pos).split("\n").length,
  }));
}

/** `@scope/name/deep` → `@scope/name`; `name/deep` → `name`. */
function packageOf(specifier: string): string {
  return specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");
}

const isTest = (path: string): boolean => /\.test(-d)?\.ts$/.test(path) || /^packages\/[^/]+\/test\//.test(path);

/**
 * Everything that the imports of one package do against the rules, one line each. Tests may import any package of ours and
 * the root's development dependencies; so may the private test kit's own files, except for packages above it.
 */
export function importViolations(
  folder: string,
  manifest: Manifest,
  rootManifest: Manifest,
  files: readonly SourceFile[],
): string[] {
  const allowed = mayImport[folder];
  if (allowed === undefined) return [`packages/${folder} is not in the import graph (import-rule.ts): add it`];
  const violations: string[] = [];
  const listed = { ...manifest.dependencies, ...manifest.optionalDependencies, ...manifest.peerDependencies };
  const used = new Set<string>();
  const own = `packages/${folder}/`;

  for (const file of files) {
    const test = isTest(file.path);
    for (const { specifier, line } of importsOf(file)) {
      const at = `${file.path}:${line}`;
      if (specifier.startsWith(".")) {
        const target = posix.join(posix.dirname(file.path), specifier);
        if (!target.startsWith(own))
          violations.push(`${at} leaves its package: "${specifier}"; import "@llm/x" instead`);
        else if (!/\.(js|json)$/.test(target)) violations.push(`${at} expected a .js suffix, got "${specifier}"`);
        continue;
      }
      if (specifier.startsWith("node:")) continue;
      const name = packageOf(specifier);
      if (builtinModules.includes(name)) {
        violations.push(`${at} expected "node:${specifier}", got "${specifier}"`);
        continue;
      }
      if (!test) used.add(name);
      if (name.startsWith("@llm/")) {
        const other = name.slice("@llm/".length);
        if (name === manifest.name) violations.push(`${at} imports its own package by name; use a relative path`);
        else if (specifier !== name)
          violations.push(`${at} imports "${specifier}"; only the entry "${name}" is public`);
        else if (test) continue;
        else if (!allowed.includes(other)) {
          violations.push(`${at} ${folder} may import ${list(allowed)}, got "${specifier}"`);
        } else if (!(name in listed)) violations.push(`${at} "${name}" is not in packages/${folder}/package.json`);
        continue;
      }
      const development = test || manifest.private === true ? (rootManifest.devDependencies ?? {}) : {};
      if (!(name in listed) && !(name in development)) {
        violations.push(`${at} "${name}" is not in packages/${folder}/package.json`);
      }
    }
  }

  for (const name of Object.keys(manifest.dependencies ?? {})) {
    if (!used.has(name))
      violations.push(`packages/${folder}/package.json lists "${name}", which no source file imports`);
  }
  return violations;
}

function list(names: readonly string[]): string {
  return names.length === 0 ? "no other package" : names.join(", ");
}
