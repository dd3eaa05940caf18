import { createRequire } from "node:module";
import type tsNow from "typescript";
import { expect, test } from "vitest";
import { expectNone, publicPackages, readManifest, requireBuild, root } from "./workspace.js";

const oldFolder = "tools/typescript-50";
const ts = createRequire(`${root}${oldFolder}/package.json`)("typescript") as typeof tsNow;

/** Syntax errors that the old compiler finds in a program of these root files, as `file:line: message`; `files` counts those read. */
function syntaxErrors(
  entries: readonly string[],
  virtual: ReadonlyMap<string, string>,
): { errors: string[]; files: string[] } {
  const options: tsNow.CompilerOptions = {
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.CommonJS,
    moduleResolution: 2 satisfies tsNow.ModuleResolutionKind.Node10,
    noEmit: true,
    types: [],
  };
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists } = host;
  host.fileExists = (file) => virtual.has(file) || fileExists.call(host, file);
  host.getSourceFile = (file, version, ...rest) => {
    const text = virtual.get(file);
    return text === undefined
      ? getSourceFile.call(host, file, version, ...rest)
      : ts.createSourceFile(file, text, version);
  };
  const program = ts.createProgram([...entries, ...virtual.keys()], options, host);
  const ours = program
    .getSourceFiles()
    .filter(({ fileName }) => fileName.startsWith(root) && !fileName.includes("/node_modules/"));
  const errors = ours.flatMap((source) =>
    program.getSyntacticDiagnostics(source).map(({ start, messageText }) => {
      const line = source.getLineAndCharacterOfPosition(start).line + 1;
      return `${source.fileName.slice(root.length)}:${line}: ${ts.flattenDiagnosticMessageText(messageText, " ")}`;
    }),
  );
  return { errors, files: ours.map(({ fileName }) => fileName.slice(root.length)) };
}

test("every public .d.ts parses under TypeScript 5.0", (context) => {
  expect(ts.version).toBe(readManifest(oldFolder).dependencies?.["typescript"]);
  requireBuild(context, publicPackages);
  const entry = publicPackages
    .map(({ name, folder }) => `export * as p_${folder.replace("-", "_")} from "${name}";`)
    .join("\n");
  const { errors, files } = syntaxErrors([], new Map([[`${root}every-package.ts`, entry]]));
  for (const { folder } of publicPackages) expect(files).toContain(`packages/${folder}/dist/index.d.ts`);
  expectNone("declarations that TypeScript 5.0 cannot parse", errors);
});

test("syntax newer than TypeScript 5.0 is noticed", () => {
  const text = 'export declare const a: number;\nimport data from "./a.json" with { type: "json" };\n';
  expect(syntaxErrors([], new Map([[`${root}newer.d.ts`, text]])).errors[0]).toMatch(/^newer\.d\.ts:2: /);
});
