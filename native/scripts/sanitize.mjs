// Builds the core with address and undefined-behaviour sanitizers and runs the op cases under them.
// usage: node native/scripts/sanitize.mjs [--no-build] [arguments of packages/testing/src/ops/main.ts]
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
const start = performance.now();
const { status, signal } = spawnSync(
  process.execPath,
  [`${root}/tools/run-ts.mjs`, `${root}/packages/testing/src/ops/main.ts`, ...rest],
  {
    stdio: "inherit",
    env: {
      ...process.env,
      LD_PRELOAD: `${library("libasan.so")} ${library("libubsan.so")}`,
      // Node frees little at its end: leaks are looked for by memory counters, not here.
      ASAN_OPTIONS: "detect_leaks=0:halt_on_error=1:abort_on_error=0",
      UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
      LLM_FROM_SOURCE: "1",
      LLM_NATIVE: `${root}/native/build-sanitize${process.env.LLM_CXX ? `-${process.env.LLM_CXX}` : ""}/llm.node`,
    },
  },
);
console.log(`ran in ${seconds(start)}${signal ? `, ended by ${signal}` : ""}`);
process.exitCode = status ?? 1;
