// Checks what ptxas said of every kernel of the last build: bytes spilled beyond the budget in native/cuda/spills.json fail.
// usage: node native/scripts/check-spills.mjs [--write]     --write prints the budget that the build needs
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const native = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const folder = `${native}/build-cuda/90a`;
const logs = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith(".ptxas")) : [];
if (logs.length === 0) {
  console.error("[check-spills] no build of sm_90a is here; run native/scripts/build-cuda.mjs first");
  process.exit(1);
}
/** Object's name → { bytes, why }. */
const { files, nvcc12 } = JSON.parse(readFileSync(`${native}/cuda/spills.json`, "utf8"));
const isNvcc12 = Number(readFileSync(`${folder}/nvcc-version`, "utf8")) < 1300;
const budget = isNvcc12 ? { ...files, ...nvcc12.files } : files;
let kernels = 0;
const found = {};
const problems = [];
for (const log of logs) {
  const file = log.replace(/\.ptxas$/, "");
  let kernel = "";
  for (const line of readFileSync(`${folder}/${log}`, "utf8").split("\n")) {
    const entry = /Compiling entry function '([^']+)'/.exec(line);
    if (entry) kernel = entry[1];
    const spill = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (!spill || kernel === "") continue;
    kernels++;
    const bytes = Math.max(Number(spill[1]), Number(spill[2]));
    // One budget a file: templates have too many names to list.
    if (bytes > 0) found[file] = Math.max(found[file] ?? 0, bytes);
    if (bytes > (budget[file]?.bytes ?? 0))
      problems.push(`${file}: ${bytes} bytes, budget ${budget[file]?.bytes ?? 0}: ${kernel}`);
    kernel = "";
  }
}
if (process.argv.includes("--write")) console.log(JSON.stringify(found, null, 2));
if (problems.length > 0) {
  let text = problems.slice(0, 20).join("\n");
  try {
    text = execFileSync("c++filt", { input: text, encoding: "utf8" });
  } catch {
    // The mangled names say it too.
  }
  console.error(`[check-spills] kernels that spill registers beyond their budget:\n${text}`);
  process.exit(1);
}
console.log(`[check-spills] ${kernels} kernels of ${logs.length} files within their budget`);
