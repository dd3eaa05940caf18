import { existsSync, readdirSync, rmSync } from "node:fs";
import { defineConfig } from "tsup";

/**
 * One build for every package: ESM for Node 20; the types come from tsc, which runs next.
 * Entries are found: `src/index.ts`, the command's `src/main.ts` (its `#!` line is kept), and `src/*worker.ts`, the
 * files that become worker threads and so must stay files of their own.
 */
export default defineConfig(() => {
  rmSync("dist", { recursive: true, force: true });
  return {
    entry: [
      ...["src/index.ts", "src/main.ts"].filter((file) => existsSync(file)),
      ...readdirSync("src")
        .filter((file) => file.endsWith("worker.ts"))
        .map((file) => `src/${file}`),
    ],
    format: ["esm"],
    target: "node20",
    splitting: true,
    clean: false,
    sourcemap: false,
    silent: true,
    outDir: "dist",
  };
});
