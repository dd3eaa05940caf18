import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";

const root = fileURLToPath(new URL("../../../", import.meta.url));

/** Path in the assets folder (LLM_ASSETS, default ../shared/assets), or undefined with the reason printed. */
export function asset(...parts: string[]): string | undefined {
  const path = join(process.env["LLM_ASSETS"] ?? join(root, "../shared/assets"), ...parts);
  if (existsSync(path)) return path;
  console.log(`skipped: ${path} is absent (set LLM_ASSETS)`);
  return undefined;
}
