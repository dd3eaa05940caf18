// node tools/run-ts.mjs file.ts [arguments]: runs a TypeScript file on Node 20, types stripped, `@llm/x` from packages/x/dist.
import { register } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [file, ...rest] = process.argv.slice(2);
if (file === undefined) {
  console.error("usage: node tools/run-ts.mjs file.ts [arguments]");
  process.exitCode = 2;
} else {
  const path = resolve(file);
  process.argv = [process.argv[0], path, ...rest];
  process.setSourceMapsEnabled(true);
  register("./run-ts-hooks.mjs", import.meta.url);
  await import(pathToFileURL(path).href);
}
