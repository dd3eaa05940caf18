import { execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** The repository's root folder, with a trailing slash. */
export const root: string = fileURLToPath(new URL("../../../../", import.meta.url));

/** The parts of a package.json that the repository's rules read. */
export interface Manifest {
  readonly main?: string;
  readonly name: string;
  readonly version: string;
  readonly private?: boolean;
  readonly bin?: Readonly<Record<string, string>>;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
  readonly peerDependencies?: Readonly<Record<string, string>>;
}

/** One folder under packages/. */
export interface Package {
  /** Name of its folder: `quant-awq`. */
  readonly folder: string;
  /** Published name: `@llm/quant-awq`. */
  readonly name: string;
  readonly manifest: Manifest;
}

/** Text of a file, its path relative to the root. */
export function readText(path: string): string {
  return readFileSync(root + path, "utf8");
}

/** A package.json, its folder relative to the root (`""` is the root's own). */
export function readManifest(folder: string): Manifest {
  return JSON.parse(readText(folder === "" ? "package.json" : `${folder}/package.json`)) as Manifest;
}

/** Every package under packages/, by folder name. */
export const packages: readonly Package[] = readdirSync(`${root}packages`)
  .filter((folder) => existsSync(`${root}packages/${folder}/package.json`))
  .sort()
  .map((folder) => {
    const manifest = readManifest(`packages/${folder}`);
    return { folder, name: manifest.name, manifest };
  });

/** The packages that users install. */
export const publicPackages: readonly Package[] = packages.filter((entry) => entry.manifest.private !== true);

/** Every file that git tracks or would add, relative to the root, sorted. */
export function repositoryFiles(): string[] {
  const output = execFileSync(
    "git",
    ["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    { cwd: root, encoding: "utf8", maxBuffer: 1 << 26 },
  );
  return [...new Set(output.split("\0"))].filter((path) => path !== "" && existsSync(root + path)).sort();
}

/** What the build leaves: a package's entry, or the native addon. */
export type Built = Package | "native";

const nativeAddon = "native/npm/linux-x64/llm.node";

/** Names of the files that `npm run build` should have made and has not. */
export function missingBuild(wanted: readonly Built[]): string[] {
  return wanted
    .flatMap((entry) =>
      entry === "native"
        ? [nativeAddon]
        : [`packages/${entry.folder}/dist/index.js`, `packages/${entry.folder}/dist/index.d.ts`],
    )
    .filter((path) => !existsSync(root + path));
}

/**
 * Skips the running test, with the reason printed, when the build is absent.
 * Under `npm test` (`LLM_REQUIRE_BUILD=1`) the build came before, so its absence is a failure.
 */
export function requireBuild(context: { skip: (note: string) => never }, wanted: readonly Built[]): void {
  const missing = missingBuild(wanted);
  if (missing.length === 0) return;
  const reason = `not built: ${missing.slice(0, 3).join(", ")}${missing.length > 3 ? " …" : ""}; run \`npm run build\``;
  if (process.env["LLM_REQUIRE_BUILD"] === "1") throw new Error(reason);
  console.warn(`skipped: ${reason}`);
  context.skip(reason);
}

/** What a child process said and how it ended. */
export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly milliseconds: number;
}

/** How to run a child process. */
export interface RunOptions {
  readonly cwd: string;
  /** The whole environment; the parent's when absent. */
  readonly env?: NodeJS.ProcessEnv;
  /** The process is killed after this time, in milliseconds. @default 60000 */
  readonly timeoutMs?: number;
}

/** Runs `node` with these arguments to its end. */
export function runNode(args: readonly string[], options: RunOptions): Promise<Finished> {
  const start = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, {
      cwd: options.cwd,
      env: options.env ?? { ...process.env, NODE_OPTIONS: "", FORCE_COLOR: "0", NO_COLOR: "1" },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: options.timeoutMs ?? 60_000,
      killSignal: "SIGKILL",
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr, milliseconds: performance.now() - start }));
  });
}

/** Throws with the end of the output when the process did not exit with 0. */
export function expectSuccess(what: string, finished: Finished): void {
  if (finished.code === 0) return;
  const end = (text: string): string => text.trimEnd().split("\n").slice(-30).join("\n");
  const how =
    finished.code === null
      ? `was killed after ${Math.round(finished.milliseconds)} ms`
      : `exited with ${finished.code}`;
  throw new Error(`${what} ${how}\n--- stdout\n${end(finished.stdout)}\n--- stderr\n${end(finished.stderr)}`);
}

/** Fails with one line a violation, so that a rule's report can be read without a stack trace. */
export function expectNone(rule: string, violations: readonly string[]): void {
  if (violations.length === 0) return;
  const error = new Error(`${rule} (${violations.length}):\n${violations.map((line) => `  ${line}`).join("\n")}`);
  error.stack = error.message;
  throw error;
}
