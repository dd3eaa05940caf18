import { existsSync, readdirSync, realpathSync } from "node:fs";
import { expect, test } from "vitest";
import { expectNone, packages, publicPackages, readManifest, readText, root, type Manifest } from "./workspace.js";

interface Lock {
  readonly packages: Readonly<Record<string, Manifest & { readonly resolved?: string; readonly link?: boolean }>>;
}

const lock = JSON.parse(readText("package-lock.json")) as Lock;
const workspaces = [
  "",
  "native",
  "native/npm/linux-x64",
  "native/npm/linux-x64-cuda",
  "tools/typescript-50",
  ...packages.map(({ folder }) => `packages/${folder}`),
];

test("the lock names no host, so that it installs from any registry", () => {
  expect(readText(".npmrc")).toContain("omit-lockfile-registry-resolved=true");
  expect(readText(".npmrc")).not.toMatch(/registry\s*=\s*http/);
  const hosts = Object.entries(lock.packages).filter(([, entry]) => /^[a-z+]+:\/\//.test(entry.resolved ?? ""));
  expectNone(
    "entries with a host; remove `resolved` or run `npm install` with the .npmrc of this repository",
    hosts.map(([path, entry]) => `${path}: ${entry.resolved}`),
  );
});

test("the lock holds what every package.json asks for", () => {
  const fields = ["version", "dependencies", "devDependencies", "optionalDependencies", "peerDependencies"] as const;
  const violations = workspaces.flatMap((folder) => {
    const manifest = readManifest(folder);
    const locked = lock.packages[folder];
    return fields
      .filter((field) => JSON.stringify(sorted(manifest[field])) !== JSON.stringify(sorted(locked?.[field])))
      .map((field) => `${folder || "package.json"}: ${field} differ; run \`npm install\``);
  });
  expectNone("package-lock.json is out of date", violations);
});

function sorted(value: string | Readonly<Record<string, string>> | undefined): unknown {
  return typeof value === "object" ? Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)) : value;
}

test("dependencies are pinned to one exact version, peers are ranges", () => {
  const violations = workspaces.flatMap((folder) => {
    const manifest = readManifest(folder);
    const all = { ...manifest.dependencies, ...manifest.devDependencies, ...manifest.optionalDependencies };
    return Object.entries(all)
      .filter(([, range]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(range))
      .map(([name, range]) => `${folder || "package.json"}: ${name} expected an exact version, got ${range}`);
  });
  expectNone("dependencies without an exact version", violations);
});

test("the tsc on the path is the root's TypeScript", () => {
  const wanted = realpathSync(`${root}node_modules/typescript/bin/tsc`);
  expect(realpathSync(`${root}node_modules/.bin/tsc`)).toBe(wanted);
  expect(readManifest("node_modules/typescript").version).toBe(readManifest("").devDependencies?.["typescript"]);
});

test("every published package has the same form", () => {
  const violations = publicPackages.flatMap(({ folder, manifest }) => {
    const got = manifest as unknown as Record<string, unknown>;
    const expected: Record<string, unknown> = {
      name: `@llm/${folder}`,
      license: "Apache-2.0",
      type: "module",
      sideEffects: false,
      engines: { node: ">=20.19" },
      types: "./dist/index.d.ts",
      exports: {
        ".": { types: "./dist/index.d.ts", default: "./dist/index.js" },
        "./package.json": "./package.json",
      },
      files: ["dist", "README.md", "LICENSE"],
      publishConfig: { access: "public" },
    };
    return Object.entries(expected)
      .filter(([key, value]) => JSON.stringify(got[key]) !== JSON.stringify(value))
      .map(([key, value]) => `${folder}: ${key} expected ${JSON.stringify(value)}, got ${JSON.stringify(got[key])}`);
  });
  expectNone("package.json files that differ from the common form", violations);
});

test("no published package runs a script at the user's install", () => {
  const manifests = [
    ...packages.map(({ folder }) => `packages/${folder}`),
    "native/npm/linux-x64",
    "native/npm/linux-x64-cuda",
  ];
  const violations = manifests.flatMap((folder) => {
    const scripts = (readManifest(folder) as { scripts?: Record<string, string> }).scripts ?? {};
    return Object.keys(scripts)
      .filter((name) => /^(pre|post)?install$|^prepare$/.test(name))
      .map((name) => `${folder}: ${name}`);
  });
  expectNone("install scripts", violations);
});

test("all packages carry one version, in one fixed group of the changesets", () => {
  const config = JSON.parse(readText(".changeset/config.json")) as Record<string, unknown>;
  expect(config["fixed"]).toEqual([["@llm/*"]]);
  expect(config["access"]).toBe("public");
  expect(config["baseBranch"]).toBe("main");
  const together = [
    ...packages.map(({ folder }) => `packages/${folder}`),
    "native",
    "native/npm/linux-x64",
    "native/npm/linux-x64-cuda",
  ];
  const versions = together.map((folder) => `${readManifest(folder).version}  ${folder}`);
  const first = readManifest("packages/core").version;
  expectNone(
    `versions that differ from core's ${first}`,
    versions.filter((line) => !line.startsWith(`${first}  `)),
  );
});

test("changesets name packages that exist and say one thing to the user", () => {
  const files = readdirSync(`${root}.changeset`).filter((file) => file.endsWith(".md") && file !== "README.md");
  const known = new Set(["@llm/native-linux-x64", "@llm/native-linux-x64-cuda", ...packages.map(({ name }) => name)]);
  const violations = files.flatMap((file) => {
    const match = /^---\n([\s\S]*?)\n---\n([\s\S]*)$/.exec(readText(`.changeset/${file}`));
    if (!match) return [`${file}: expected a header between two --- lines and a sentence`];
    const entries = (match[1] ?? "").split("\n").map((line) => /^["'](.+)["']: (patch|minor|major)$/.exec(line)?.[1]);
    const unknown = entries.filter((name) => name === undefined || !known.has(name));
    const wrong = unknown.map((name) => `${file}: expected "@llm/x": patch|minor|major, got ${name ?? "another form"}`);
    return (match[2] ?? "").trim() === "" ? [...wrong, `${file}: expected a sentence to the user`] : wrong;
  });
  expectNone("changesets", violations);
  const released = existsSync(`${root}packages/core/CHANGELOG.md`);
  expect(files.length > 0 || released, "expected a changeset or a change log: run `npm run changeset`").toBe(true);
});
