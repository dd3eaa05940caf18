// node tools/bundle.mjs in.ts out.mjs: bundles a program with the packages' sources into one file that needs only Node and the native
// libraries (LLM_NATIVE, LLM_CUDA_PLUGIN): for machines without npm.
import { build } from "esbuild";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const [input, output] = process.argv.slice(2);
if (!input || !output) {
  console.error("usage: node tools/bundle.mjs in.ts out.mjs");
  process.exit(2);
}
await build({
  entryPoints: [resolve(input)],
  outfile: resolve(output),
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  logLevel: "warning",
  external: ["onnxruntime-node"],
  banner: {
    js: 'import { createRequire as makeRequire } from "node:module"; const require = makeRequire(import.meta.url);',
  },
  plugins: [
    {
      name: "packages",
      setup(b) {
        b.onResolve({ filter: /^@llm\/[a-z-]+$/ }, ({ path }) => ({
          path: `${root}packages/${path.slice(5)}/src/index.ts`,
        }));
      },
    },
  ],
});
