// Builds the core with address and undefined-behaviour sanitizers and runs the op cases and the core's tests under them.
// usage: node native/scripts/sanitize.mjs [--no-build] [arguments of packages/testing/src/ops/main.ts: then only the op cases run]
import { execFileSync, spawnSync } from "node:child_process";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const compiler = process.env.LLM_CXX ?? "g++";
const rest = process.argv.slice(2).filter((word) => word !== "--no-build");
const seconds = (start) => `${((performance.now() - start) / 1000).toFixed(1)} s`;

if (!process.argv.includes("--no-build")) {
  const start = performance.now();
  execFileSync(process.execPath, [`${root}/native/scripts/build.mjs`, "--sanitize"], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  console.log(`built in ${seconds(start)}`);
}

// Node itself is not instrumented, so the sanitizers' libraries must be there before it.
const library = (name) => execFileSync(compiler, [`-print-file-name=${name}`], { encoding: "utf8" }).trim();
const env = {
  ...process.env,
  LD_PRELOAD: `${library("libasan.so")} ${library("libubsan.so")}`,
  // Node frees little at its end: leaks are looked for by memory counters, not here. Sizes that no machine has must fail as they do without.
  ASAN_OPTIONS: "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1",
  UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
  LLM_FROM_SOURCE: "1",
  LLM_NATIVE: `${root}/native/build-sanitize${process.env.LLM_CXX ? `-${process.env.LLM_CXX}` : ""}/llm.node`,
};

function run(what, args) {
  const start = performance.now();
  const { status, signal } = spawnSync(process.execPath, args, { cwd: root, stdio: "inherit", env });
  console.log(`${what}: ran in ${seconds(start)}${signal ? `, ended by ${signal}` : ""}`);
  if (status !== 0) process.exitCode = 1;
}

run("op cases", [`${root}/tools/run-ts.mjs`, `${root}/packages/testing/src/ops/main.ts`, ...rest]);
const tests = ["autograd", "errors", "memory", "plan", "workers"].map((name) => `packages/core/src/${name}.test.ts`);
if (rest.length === 0) run("core tests", [`${root}/node_modules/vitest/vitest.mjs`, "run", ...tests]);
