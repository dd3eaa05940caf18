// node tools/gen-cli-descriptions.mjs [--check]: writes packages/cli/src/gen/descriptions.ts, the docstrings of the option
// schemas that the command line makes flags of. Which ones, the commands say: every `docs: "package.Name"` in their sources.
// With --check nothing is written, and the exit code is 1 when the file is not what would be written.
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const root = fileURLToPath(new URL("../", import.meta.url));
const target = `${root}packages/cli/src/gen/descriptions.ts`;
const commandFolder = `${root}packages/cli/src/commands`;

/** Schemas whose keys are documented elsewhere: at an interface that another package exports. */
const documentedAt = new Map([
  ["models.GenerateOptionsSchema", ["models", "GenerateOptions"]],
  ["serve.clientRequestSchema", ["models", "GenerateOptions"]],
]);

const commandFiles = readdirSync(commandFolder)
  .filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"))
  .map((name) => `${commandFolder}/${name}`);
const wanted = new Set();
for (const file of [...commandFiles, `${root}packages/cli/src/define-config.ts`]) {
  for (const [, list] of readFileSync(file, "utf8").matchAll(/docs: (\[[^\]]*\]|"[^"]*")/g)) {
    for (const [, name] of list.matchAll(/"([\w-]+\.\w+)"/g)) wanted.add(name);
  }
}

const { config } = ts.parseConfigFileTextToJson("tsconfig.json", readFileSync(`${root}tsconfig.json`, "utf8"));
const parsed = ts.parseJsonConfigFileContent({ ...config, include: [], files: [] }, ts.sys, root);
const packages = [...new Set([...wanted].map((name) => name.split(".")[0]))].filter((name) => name !== "cli");
const entryOf = (name) => `${root}packages/${name}/src/index.ts`;
const program = ts.createProgram([...packages.map(entryOf), ...commandFiles], { ...parsed.options, noEmit: true, skipLibCheck: true });
const checker = program.getTypeChecker();

function exportsOf(file) {
  const source = program.getSourceFile(file);
  const module = source && checker.getSymbolAtLocation(source);
  return module ? checker.getExportsOfModule(module) : [];
}

/** The exported symbol "package.Name"; "cli.Name" is exported by a command's file. */
function find(packageName, name) {
  const files = packageName === "cli" ? commandFiles : [entryOf(packageName)];
  const symbol = files.flatMap(exportsOf).find((candidate) => candidate.name === name);
  if (symbol === undefined) throw new Error(`expected @llm/${packageName} to export ${name}`);
  return symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
}

const property = (type, name, at) => {
  const symbol = type.getProperty(name);
  return symbol && checker.getTypeOfSymbolAtLocation(symbol, at);
};

/** Text and default of a docstring: "@default" wins; without text, only the default. */
function documentation(symbol) {
  const flat = (parts) => ts.displayPartsToString(parts).replace(/\{@link (\w+)\}/g, "$1").replace(/\s+/g, " ").trim();
  const text = flat(symbol.getDocumentationComment(checker));
  const tag = symbol.getJsDocTags(checker).find(({ name }) => name === "default");
  const fallback = tag?.text === undefined ? undefined : flat(tag.text);
  return text === "" && fallback === undefined ? undefined : [text, ...(fallback === undefined ? [] : [fallback])];
}

/** A key's name as words, where the docstring holds nothing but a default. */
const words = (key) => key.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`).replace(/^./, (letter) => letter.toUpperCase());

/** The object schema inside optional(), or undefined. */
function entriesOf(type, at) {
  const entries = property(type, "entries", at);
  if (entries) return entries;
  const wrapped = property(type, "wrapped", at);
  return wrapped && entriesOf(wrapped, at);
}

const missing = [];
function collect(place, entries, at, fallbackDocs, prefix, into) {
  for (const symbol of entries.getProperties()) {
    const path = prefix + symbol.name;
    const inner = entriesOf(checker.getTypeOfSymbolAtLocation(symbol, at), at);
    if (inner) {
      collect(place, inner, at, undefined, `${path}.`, into);
      continue;
    }
    const found = documentation(symbol) ?? fallbackDocs?.get(symbol.name);
    if (found === undefined) missing.push(`${place} ${path}`);
    else into[path] = [found[0] === "" ? `${words(symbol.name)}.` : found[0], ...found.slice(1)];
  }
}

const descriptions = {};
for (const place of [...wanted].sort()) {
  const [packageName, name] = place.split(".");
  const symbol = find(packageName, name);
  const at = symbol.valueDeclaration ?? symbol.declarations[0];
  const entries = entriesOf(checker.getTypeOfSymbolAtLocation(symbol, at), at);
  if (entries === undefined) throw new Error(`expected ${place} to be an object schema`);
  const elsewhere = documentedAt.get(place);
  let fallbackDocs;
  if (elsewhere) {
    const type = checker.getDeclaredTypeOfSymbol(find(...elsewhere));
    fallbackDocs = new Map(type.getProperties().map((key) => [key.name, documentation(key)]));
  }
  descriptions[place] = {};
  collect(place, entries, at, fallbackDocs, "", descriptions[place]);
}
const strings = missing.filter((line) => !/ (signal|onProgress|onError|onReport|parameters)$/.test(line));
if (strings.length > 0) throw new Error(`keys without a docstring:\n  ${strings.join("\n  ")}`);

const body = Object.entries(descriptions)
  .map(([place, keys]) => `  ${JSON.stringify(place)}: {\n${Object.entries(keys).map(([path, entry]) => `    ${JSON.stringify(path)}: ${JSON.stringify(entry)},\n`).join("")}  },\n`)
  .join("");
const text = `// Generated from the option schemas' docstrings by tools/gen-cli-descriptions.mjs. Do not edit.

/** Schema ("package.Name") → dotted key → [what it is, default as text]. */
export const descriptions: Readonly<Record<string, Readonly<Record<string, readonly [string, string?]>>>> = {
${body}};
`;

/** What formatting may change: white space, quotes of keys, trailing commas. */
const bare = (source) => source.replace(/,(\s*[\]}])/g, "$1").replace(/^\s*"?([\w.-]+)"?:/gm, "$1:").replace(/\s+/g, "");
if (process.argv.includes("--check")) {
  const current = existsSync(target) ? readFileSync(target, "utf8") : "";
  if (bare(current) !== bare(text)) {
    console.error("packages/cli/src/gen/descriptions.ts is out of date; run node tools/gen-cli-descriptions.mjs");
    process.exitCode = 1;
  }
} else {
  writeFileSync(`${target}.tmp`, text);
  renameSync(`${target}.tmp`, target);
}
