/** Packs a source file and everything that it imports into one file for Node, as it goes to a machine without npm. */
import { readdirSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "tsup";

const packages = fileURLToPath(new URL("../../", import.meta.url));

/** @returns the path of the file, and a function that deletes it */
export async function bundle(entry: URL): Promise<{ file: string; remove: () => Promise<void> }> {
  const outDir = await mkdtemp(join(tmpdir(), "llm-bundle-"));
  await build({
    config: false,
    entry: { bundled: fileURLToPath(entry) },
    outDir,
    format: "esm",
    target: "node20",
    platform: "node",
    silent: true,
    splitting: false,
    outExtension: () => ({ js: ".mjs" }),
    noExternal: [/.*/],
    esbuildOptions(options) {
      options.alias = Object.fromEntries(
        readdirSync(packages).map((name) => [`@llm/${name}`, `${packages}${name}/src/index.ts`]),
      );
    },
  });
  return { file: join(outDir, "bundled.mjs"), remove: () => rm(outDir, { recursive: true, force: true }) };
}
