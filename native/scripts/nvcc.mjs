// Finds the CUDA compiler.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

/** The oldest that compiles the plugin: 12.4. */
const oldest = 1204;

/**
 * The first nvcc of 12.4 or later in CUDACXX, CUDA_HOME, PATH and /usr/local/cuda, or undefined.
 * @returns {{ path: string, version: number } | undefined}  version 1204 is 12.4
 */
export function findNvcc() {
  const places = [process.env.CUDACXX, process.env.CUDA_HOME && join(process.env.CUDA_HOME, "bin/nvcc")];
  for (const folder of (process.env.PATH ?? "").split(":")) places.push(join(folder, "nvcc"));
  places.push("/usr/local/cuda/bin/nvcc");
  for (const path of new Set(places)) {
    if (!path || !existsSync(path)) continue;
    const [, major, minor] =
      /release (\d+)\.(\d+)/.exec(spawnSync(path, ["--version"], { encoding: "utf8" }).stdout) ?? [];
    const version = Number(major) * 100 + Number(minor);
    if (version >= oldest) return { path, version };
  }
  return undefined;
}
