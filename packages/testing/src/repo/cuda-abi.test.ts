import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { root } from "./workspace.js";

const program = "native/cuda/tests/abi_check.cu";

/** Where headers of CUDA and its libraries may be; LLM_CUDA_HEADERS names more folders, with a colon between two. */
const folders = [
  ...(process.env["LLM_CUDA_HEADERS"] ?? "").split(":").filter(Boolean),
  ...(process.env["CUDA_HOME"] ? [join(process.env["CUDA_HOME"], "include")] : []),
  "/usr/local/cuda/include",
];

/** Compiles the comparison, all static assertions, without making code. `headers` are the files that the compiler read. */
function compile(): { status: number | null; text: string; headers: string[] } {
  const include = folders.flatMap((folder) => ["-isystem", folder]);
  const { status, stderr, error } = spawnSync(
    process.env["LLM_CXX"] ?? "c++",
    ["-std=c++20", "-x", "c++", "-fsyntax-only", "-H", "-Inative", ...include, program],
    { cwd: root, encoding: "utf8" },
  );
  if (error) throw error;
  const isHeader = (line: string): boolean => /^\.+ /.test(line);
  const lines = stderr.split("\n");
  return {
    status,
    text: lines.filter((line) => !isHeader(line)).join("\n"),
    headers: lines.filter(isHeader).map((line) => line.replace(/^\.+ /, "")),
  };
}

test.for([
  ["cuBLASLt", "cublasLt.h"],
  ["NCCL", "nccl.h"],
] as const)("our declarations of %s agree with %s", ([library, header], context) => {
  for (const needed of ["cuda_runtime_api.h", header]) {
    if (folders.some((folder) => existsSync(join(folder, needed)))) continue;
    const reason = `${library}: ${needed} is in none of ${folders.join(", ")}; name its folder in LLM_CUDA_HEADERS`;
    console.warn(`skipped: ${reason}`);
    context.skip(reason);
  }
  const { status, text, headers } = compile();
  expect(status, text).toBe(0);
  expect(headers.some((path) => folders.some((folder) => path === join(folder, header)))).toBe(true);
});
