// node bench/gpu/pack.mjs folder: bundles the GPU benches, the op cases and the command line into files that need only Node, for a GPU
// machine without npm; see README.md.
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const folder = process.argv[2] && resolve(process.argv[2]);
if (!folder) {
  console.error("usage: node bench/gpu/pack.mjs folder");
  process.exit(2);
}
const programs = {
  ops: "packages/testing/src/ops/main.ts",
  "cli/llm": "packages/cli/src/main.ts",
  ...Object.fromEntries(
    ["decode", "fp8-parity", "kernels", "load", "parity", "train-step"].map((name) => [name, `bench/gpu/${name}.ts`]),
  ),
};
mkdirSync(join(folder, "cli"), { recursive: true });
for (const [name, source] of Object.entries(programs))
  execFileSync(process.execPath, [`${root}tools/bundle.mjs`, `${root}${source}`, join(folder, `${name}.mjs`)], {
    stdio: "inherit",
  });
// The command line reads its version beside its folder.
const { version } = JSON.parse(readFileSync(`${root}packages/cli/package.json`, "utf8"));
writeFileSync(join(folder, "package.json"), JSON.stringify({ version }));
const headers = dirname(createRequire(import.meta.url).resolve("node-api-headers/package.json"));
cpSync(join(headers, "include"), join(folder, "napi/include"), { recursive: true });
