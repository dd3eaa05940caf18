// `npm pack` of a package: puts the licence text beside its package.json and refuses to pack what was not built.
import { copyFileSync, existsSync, readFileSync } from "node:fs";
import { root } from "./steps.mjs";

const manifest = JSON.parse(readFileSync("package.json", "utf8"));
const entries = [manifest.main, manifest.types, manifest.exports?.["."]?.default, ...Object.values(manifest.bin ?? {})];
const missing = entries.filter((entry) => entry !== undefined && !existsSync(entry));
if (missing.length > 0) {
  console.error(`[prepack] ${manifest.name}: expected ${missing.join(", ")} to exist; run \`npm run build\` first`);
  process.exitCode = 1;
} else {
  copyFileSync(`${root}/LICENSE`, "LICENSE");
}
