// What `npm test` and `npm run quickstart` share: install if needed, run a command as a named part, time it.
// Only Node's own modules: this runs before anything is installed.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** The repository's root folder, without a trailing slash. */
export const root = fileURLToPath(new URL("..", import.meta.url)).replace(/[\\/]$/, "");

/** `12.3 s` or `2 min 5 s`. */
export function seconds(milliseconds) {
  const total = milliseconds / 1000;
  return total < 90 ? `${total.toFixed(1)} s` : `${Math.floor(total / 60)} min ${Math.round(total % 60)} s`;
}

/**
 * Why `npm ci` must run, or undefined when node_modules holds exactly what package-lock.json asks for.
 * Compared by content, so that a checkout that only touches the file's time does not reinstall.
 */
export function installNeeded() {
  const installedPath = `${root}/node_modules/.package-lock.json`;
  if (!existsSync(installedPath)) return "node_modules is missing";
  const wanted = JSON.parse(readFileSync(`${root}/package-lock.json`, "utf8")).packages;
  const installed = JSON.parse(readFileSync(installedPath, "utf8")).packages;
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === "" || entry.link || !path.includes("node_modules/")) continue;
    const there = installed[path];
    if (!there && (entry.optional || entry.devOptional || entry.peer)) continue;
    if (!there || there.version !== entry.version) {
      return `${path} is ${there?.version ?? "missing"}, package-lock.json wants ${entry.version}`;
    }
  }
  return undefined;
}

/** Runs a command in the repository's root with its output passed on; resolves to its exit code. */
function execute(command, args, environment) {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd: root,
      stdio: ["ignore", "inherit", "inherit"],
      env: { ...process.env, TURBO_TELEMETRY_DISABLED: "1", ...environment },
    });
    child.on("error", (error) => {
      console.error(error.message);
      resolve(127);
    });
    child.on("exit", (code, signal) => resolve(code ?? `signal ${signal}`));
  });
}

/** A run of named parts. `report()` prints one line a part with its outcome and time. */
export function createParts() {
  const parts = [];
  const started = performance.now();
  return {
    parts,

    /** Runs one part; true when it exited with 0. */
    async run(title, command, args, environment = {}) {
      console.log(`\n── ${title} ${"─".repeat(Math.max(3, 76 - title.length))}`);
      const start = performance.now();
      const code = await execute(command, args, environment);
      const part = { title, ok: code === 0, code, milliseconds: performance.now() - start };
      parts.push(part);
      console.log(`── ${title}: ${part.ok ? "ok" : `FAILED (exit code ${code})`}, ${seconds(part.milliseconds)}`);
      return part.ok;
    },

    /** `npm ci` when it is needed. True when the packages are there. */
    async install() {
      const reason = installNeeded();
      if (reason === undefined) return true;
      console.log(`install: ${reason}`);
      return this.run("install (npm ci)", "npm", ["ci", "--no-audit", "--no-fund"]);
    },

    /** Path of an installed package's program, to be run by node: no shell, no search path. */
    program(path) {
      return `${root}/node_modules/${path}`;
    },

    report() {
      console.log("");
      for (const { title, ok, milliseconds } of parts) {
        console.log(`${ok ? "ok    " : "FAILED"}  ${title.padEnd(36)} ${seconds(milliseconds).padStart(12)}`);
      }
      console.log(`        ${"together".padEnd(36)} ${seconds(performance.now() - started).padStart(12)}`);
    },
  };
}
