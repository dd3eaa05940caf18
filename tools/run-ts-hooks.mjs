// Loader hooks of run-ts.mjs: `.ts` files are transpiled one by one, and a relative `./x.js` falls back to `./x.ts`.
// With LLM_FROM_SOURCE=1 the packages' sources are used instead of their dist folders.
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const root = new URL("..", import.meta.url);

export async function resolve(specifier, context, next) {
  const name = /^@llm\/(?!native-)([\w-]+)$/.exec(specifier)?.[1];
  if (name && process.env.LLM_FROM_SOURCE === "1")
    return next(new URL(`packages/${name}/src/index.ts`, root).href, context);
  try {
    return await next(specifier, context);
  } catch (error) {
    if (error.code !== "ERR_MODULE_NOT_FOUND" || !/^\.{0,2}\/.*\.js$/.test(specifier)) throw error;
    return next(specifier.replace(/\.js$/, ".ts"), context);
  }
}

export async function load(url, context, next) {
  if (!url.startsWith("file:") || !url.endsWith(".ts")) return next(url, context);
  const fileName = fileURLToPath(url);
  const { outputText } = ts.transpileModule(await readFile(fileName, "utf8"), {
    fileName,
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      verbatimModuleSyntax: true,
      inlineSourceMap: true,
      inlineSources: true,
    },
  });
  return { format: "module", source: outputText, shortCircuit: true };
}
