// Finds the CUDA compiler.
import { existsSync } from "node:fs";
import { join } from "node:path";

/** nvcc's path (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda), or undefined. */
export function findNvcc() {
  const places = [process.env.CUDACXX, process.env.CUDA_HOME && join(process.env.CUDA_HOME, "bin/nvcc")];
  for (const folder of (process.env.PATH ?? "").split(":")) places.push(join(folder, "nvcc"));
  places.push("/usr/local/cuda/bin/nvcc");
  return places.find((path) => path && existsSync(path));
}
