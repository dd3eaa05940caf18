import { execFile } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test, type TestContext } from "vitest";
import { packSnippets } from "./pack-snippets.js";
import { expectNone, expectSuccess, publicPackages, readManifest, requireBuild, root, runNode } from "./workspace.js";

const native = "native/npm/linux-x64";
/** The CUDA plugin's package: only where it was built. */
const plugin = "native/npm/linux-x64-cuda";
const natives = existsSync(join(root, plugin, "libllm_cuda.so")) ? [native, plugin] : [native];
const temporary = mkdtempSync(join(tmpdir(), "llm-pack-"));
const project = join(temporary, "project");
const onlyNode = join(temporary, "bin");
afterAll(() => rmSync(temporary, { recursive: true, force: true }));

/** An environment of a machine with Node and nothing else: no compiler, no Python, no npm, no settings. */
const bareEnvironment: NodeJS.ProcessEnv = { PATH: onlyNode, HOME: temporary };

interface Tarball {
  readonly name: string;
  readonly filename: string;
  readonly files: readonly { readonly path: string }[];
}

/** The npm that runs these tests, or the one beside node. */
function npmProgram(): string {
  const candidates = [
    process.env["npm_execpath"] ?? "",
    join(dirname(process.execPath), "../lib/node_modules/npm/bin/npm-cli.js"),
    join(dirname(process.execPath), "node_modules/npm/bin/npm-cli.js"),
    "/usr/share/nodejs/npm/bin/npm-cli.js",
  ];
  const found = candidates.find((path) => path.endsWith("npm-cli.js") && existsSync(path));
  if (!found) throw new Error(`expected npm beside node, looked for ${candidates.join(", ")}`);
  return found;
}

let installed: Promise<Tarball[]> | undefined;

/** Packs everything and installs it into an empty project, once for all tests. */
function install(): Promise<Tarball[]> {
  installed ??= (async () => {
    mkdirSync(project);
    mkdirSync(onlyNode);
    symlinkSync(process.execPath, join(onlyNode, "node"));
    const folders = [...publicPackages.map(({ folder }) => `packages/${folder}`), ...natives];
    const packed = await promisify(execFile)(
      process.execPath,
      [
        npmProgram(),
        "pack",
        "--json",
        "--loglevel=error",
        `--pack-destination=${temporary}`,
        ...folders.map((f) => `--workspace=${f}`),
      ],
      { cwd: root, maxBuffer: 1 << 26 },
    );
    const listed = JSON.parse(packed.stdout.slice(packed.stdout.search(/^[[{]/m))) as
      | Tarball[]
      | Record<string, Tarball>;
    const tarballs = Object.values(listed);
    writeFileSync(join(project, "package.json"), JSON.stringify({ name: "project", version: "1.0.0", private: true }));
    const flags = ["--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", "--loglevel=error"];
    const paths = tarballs.map(({ filename }) => join(temporary, filename));
    const finished = await runNode([npmProgram(), "install", ...flags, ...paths], {
      cwd: project,
      env: { ...process.env, PATH: onlyNode },
      timeoutMs: 240_000,
    });
    expectSuccess("npm install of the tarballs", finished);
    return tarballs;
  })();
  return installed;
}

async function setUp(context: TestContext): Promise<Tarball[]> {
  requireBuild(context, [...publicPackages, "native"]);
  return install();
}

/** A program that imports every package (`how` writes the import) and runs its snippet. */
function program(importLines: (name: string, local: string) => string): string {
  const parts = publicPackages.map(({ name }, index) => {
    const local = `p${index}`;
    return {
      head: importLines(name, local),
      body: `{\n  const m = ${local};\n${packSnippets[name] ?? "  void m;\n"}}\n`,
    };
  });
  return [...parts.map(({ head }) => head), ...parts.map(({ body }) => body), `console.log("done");\n`].join("\n");
}

async function runProgram(file: string, text: string): Promise<void> {
  writeFileSync(join(project, file), text);
  const finished = await runNode([file], { cwd: project, env: bareEnvironment });
  expectSuccess(file, finished);
  expect(finished.stdout).toBe("done\n");
}

const limit = 300_000;

test(
  "the tarballs hold the build, its types, a licence and nothing else",
  async (context) => {
    const tarballs = await setUp(context);
    expect(tarballs.map(({ name }) => name).sort()).toEqual(
      [...publicPackages.map(({ name }) => name), ...natives.map((folder) => readManifest(folder).name)].sort(),
    );
    const violations = tarballs.flatMap(({ name, files }) => {
      const paths = files.map(({ path }) => path);
      const library = natives.map(readManifest).find((manifest) => manifest.name === name)?.main;
      const wanted = ["LICENSE", ...(library ? [library] : ["dist/index.js", "dist/index.d.ts"])];
      const allowed = library
        ? new RegExp(`^(package\\.json|LICENSE|${library})$`)
        : /^(package\.json|README\.md|LICENSE|dist\/.*(?<!\.test)\.(js|d\.ts|html|css))$/;
      return [
        ...wanted.filter((path) => !paths.includes(path)).map((path) => `${name}: ${path} is missing`),
        ...paths.filter((path) => !allowed.test(path)).map((path) => `${name}: ${path} should not be there`),
      ];
    });
    expectNone("tarballs", violations);
  },
  limit,
);

test(
  "every package with values has a snippet in pack-snippets.ts",
  async (context) => {
    await setUp(context);
    const code = `for (const name of ${JSON.stringify(publicPackages.map(({ name }) => name))}) {
    if (Object.keys(await import(name)).length > 0) console.log(name);
  }`;
    const finished = await runNode(["--input-type=module", "--eval", code], { cwd: project, env: bareEnvironment });
    expectSuccess("importing every package", finished);
    const withValues = finished.stdout.split("\n").filter((name) => name !== "");
    expectNone(
      "packages that nothing of is tried after an installation; add a row to pack-snippets.ts",
      withValues.filter((name) => !(name in packSnippets)),
    );
  },
  limit,
);

test(
  "the installed packages work as ES modules",
  async (context) => {
    await setUp(context);
    const head = `import assert from "node:assert/strict";\n`;
    await runProgram("example.mjs", head + program((name, local) => `import * as ${local} from "${name}";`));
  },
  limit,
);

test(
  "the installed packages work through require",
  async (context) => {
    await setUp(context);
    const head = `const assert = require("node:assert/strict");\n(async () => {\n`;
    await runProgram(
      "example.cjs",
      `${head}${program((name, local) => `const ${local} = require("${name}");`)}})();\n`,
    );
  },
  limit,
);

test.for(["nodenext", "bundler"])(
  "the installed packages have types under %s resolution",
  { timeout: limit },
  async (moduleResolution, context) => {
    await setUp(context);
    const head = `import assert from "node:assert/strict";\n`;
    const file = `example-${moduleResolution}.mts`;
    writeFileSync(join(project, file), head + program((name, local) => `import * as ${local} from "${name}";`));
    const types = ["--types", "node", "--typeRoots", `${root}node_modules/@types`];
    const module = [
      "--module",
      moduleResolution === "bundler" ? "esnext" : moduleResolution,
      "--moduleResolution",
      moduleResolution,
    ];
    const options = [
      "--noEmit",
      "--strict",
      "--skipLibCheck",
      "--target",
      "es2023",
      "--lib",
      "es2023,dom,esnext.disposable",
    ];
    const finished = await runNode([`${root}node_modules/typescript/bin/tsc`, ...options, ...module, ...types, file], {
      cwd: project,
      env: bareEnvironment,
    });
    expectSuccess("tsc", finished);
  },
);

test(
  "the installed CUDA plugin is found, and opens or says what the machine lacks",
  async (context) => {
    if (!natives.includes(plugin)) context.skip("the CUDA plugin was not built");
    await setUp(context);
    const code = `import { cudaProblem, tensor } from "@llm/core";
    const problem = cudaProblem();
    console.log(problem ?? "open", (await tensor([1, 2]).data()).join());`;
    const finished = await runNode(["--input-type=module", "--eval", code], { cwd: project, env: bareEnvironment });
    expectSuccess("asking for the GPU", finished);
    expect(finished.stdout).toMatch(/^(open|\[device\] cuda: .*(libcuda|driver|GPU).*) 1,2\n$/);
  },
  limit,
);

test(
  "the installed command runs and describes itself",
  async (context) => {
    await setUp(context);
    const bins = publicPackages.flatMap(({ manifest, folder }) =>
      Object.entries(manifest.bin ?? {}).map(([name, path]) => ({
        name,
        file: join(project, "node_modules/@llm", folder, path),
      })),
    );
    expect(bins.map(({ name }) => name)).toEqual(["llm"]);
    for (const { name, file } of bins) {
      expect(readFileSync(file, "utf8").split("\n")[0]).toBe("#!/usr/bin/env node");
      expect(readdirSync(join(project, "node_modules/.bin"))).toContain(name);
      const finished = await runNode([file, "--help"], { cwd: project, env: bareEnvironment });
      expectSuccess(`${name} --help`, finished);
      expect(finished.stdout).toContain(name);
    }
  },
  limit,
);
