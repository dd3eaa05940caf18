// Builds and runs the core's own test programs (native/tests/*.cpp).
// usage: node native/scripts/test.mjs      after build.mjs, whose objects it links
import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const native = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const build = `${native}/build`;
const programs = readdirSync(`${native}/tests`)
  .filter((name) => name.endsWith(".cpp"))
  .map((name) => name.replace(/\.cpp$/, ""));
execFileSync("cmake", ["--build", build, "--target", ...programs, "--parallel", String(availableParallelism())], {
  stdio: ["ignore", "ignore", "inherit"],
});
for (const program of programs) execFileSync(`${build}/${program}`, { stdio: "inherit" });
