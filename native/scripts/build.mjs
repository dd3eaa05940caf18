// Builds the native core and puts the addon into the platform package native/npm/linux-x64; then the CUDA plugin (build-cuda.mjs).
// usage: node native/scripts/build.mjs [--sanitize]      LLM_CXX chooses the compiler (default: cmake's own choice)
//   LLM_CUDA=1 builds the plugin, 0 does not; otherwise it is built where both nvcc and an NVIDIA driver are
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, renameSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { findNvcc } from "./nvcc.mjs";

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

  const asked = process.env.LLM_CUDA;
  const gpu = existsSync("/proc/driver/nvidia") || existsSync("/dev/nvidia0");
  if (asked === "1" || (asked !== "0" && gpu && findNvcc()))
    run(process.execPath, [`${native}/scripts/build-cuda.mjs`]);
  else if (asked !== "0" && (gpu || findNvcc()))
    console.log(
      `CUDA plugin: not built (${gpu ? "nvcc 12.4 or later was not found" : "no NVIDIA driver here"}); LLM_CUDA=1 builds it`,
    );
}
