// Builds the native core and puts the addon into the platform package native/npm/linux-x64.
// usage: node native/scripts/build.mjs [--sanitize]      LLM_CXX chooses the compiler (default: cmake's own choice)
import { execFileSync } from "node:child_process";
import { copyFileSync, renameSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const native = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const sanitize = process.argv.includes("--sanitize");
const build = `${native}/build${sanitize ? "-sanitize" : ""}${process.env.LLM_CXX ? `-${process.env.LLM_CXX}` : ""}`;
const headers = createRequire(import.meta.url)("node-api-headers").include_dir;
const run = (command, args) => execFileSync(command, args, { stdio: "inherit" });

run(process.execPath, [`${native}/scripts/gen.mjs`]);
run("cmake", [
  "-S",
  native,
  "-B",
  build,
  `-DNODE_API_HEADERS=${headers}`,
  `-DLLM_SANITIZE=${sanitize ? "ON" : "OFF"}`,
  ...(process.env.LLM_CXX ? [`-DCMAKE_CXX_COMPILER=${process.env.LLM_CXX}`] : []),
]);
run("cmake", ["--build", build, "--target", "llm", "--parallel", String(availableParallelism())]);
if (!sanitize) {
  // Written under another name first: a process that has the old addon open keeps its own copy.
  const target = `${native}/npm/linux-x64/llm.node`;
  copyFileSync(`${build}/llm.node`, `${target}.new`);
  renameSync(`${target}.new`, target);
}
