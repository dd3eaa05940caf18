// node tools/gen-cli-descriptions.mjs [--check]: writes packages/cli/src/gen/descriptions.ts, the docstrings of the option
// schemas that the command line makes flags of. Which ones, the commands say: every `docs: "package.Name"` in their sources.
// With --check nothing is written, and the exit code is 1 when the file is not what would be written.
import { spawnSync } from "node:child_process";
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

const sources = new Map();
/** The parsed files of a package; only syntax is read, no types. */
function filesOf(packageName) {
  if (sources.has(packageName)) return sources.get(packageName);
  const folder = `${root}packages/${packageName}/src`;
  const files = readdirSync(folder, { recursive: true })
    .filter((name) => name.endsWith(".ts") && !/\.test(-support)?\.ts$|(^|[/\\])fixtures[/\\]/.test(name))
    .map((name) => ts.createSourceFile(name, readFileSync(`${folder}/${name}`, "utf8"), ts.ScriptTarget.Latest, true));
  sources.set(packageName, files);
  return files;
}

/** The first match of a test among the top-level statements of some files. */
function findStatement(files, test) {
  for (const file of files) {
    for (const statement of file.statements) {
      const found = test(statement);
      if (found) return found;
    }
  }
  return undefined;
}

/** What `const name = …` is, first in the file itself, then anywhere in its package. */
function valueOf(packageName, name, near) {
  const declared = (statement) =>
    ts.isVariableStatement(statement)
      ? statement.declarationList.declarations.find((entry) => entry.name.getText() === name)?.initializer
      : undefined;
  const found = (near && findStatement([near], declared)) ?? findStatement(filesOf(packageName), declared);
  if (found === undefined) throw new Error(`expected packages/${packageName}/src to declare ${name}`);
  return found;
}

/** Text and default of a key's docstring, or undefined. */
function documentation(node) {
  const docs = ts.getJSDocCommentsAndTags(node).filter(ts.isJSDoc);
  const last = docs.at(-1);
  if (last === undefined) return undefined;
  const flat = (comment) =>
    (ts.getTextOfJSDocComment(comment) ?? "")
      .replace(/\{@link (\w+)\}/g, "$1")
      .replace(/\s+/g, " ")
      .trim();
  const tag = last.tags?.find(({ tagName }) => tagName.text === "default");
  const text = flat(last.comment);
  return tag === undefined ? [text] : [text, flat(tag.comment)];
}

/** A key's name as words, where the docstring says nothing but a default, or there is none. */
const words = (key) =>
  key.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`).replace(/^./, (letter) => letter.toUpperCase());

/** The object literal of a strictObject, behind optional() and names; undefined for other schemas. */
function entriesOf(packageName, node) {
  if (ts.isIdentifier(node)) return entriesOf(packageName, valueOf(packageName, node.text, node.getSourceFile()));
  if (!ts.isCallExpression(node)) return undefined;
  const callee = node.expression.getText();
  if (callee === "v.strictObject") return node.arguments[0];
  return callee === "v.optional" ? entriesOf(packageName, node.arguments[0]) : undefined;
}

function collect(packageName, node, elsewhere, prefix, into) {
  const literal = ts.isIdentifier(node) ? valueOf(packageName, node.text, node.getSourceFile()) : node;
  if (!ts.isObjectLiteralExpression(literal)) return;
  for (const property of literal.properties) {
    if (ts.isSpreadAssignment(property)) {
      if (ts.isIdentifier(property.expression)) collect(packageName, property.expression, elsewhere, prefix, into);
      continue;
    }
    const name = property.name.getText();
    const path = prefix + name;
    const value = ts.isShorthandPropertyAssignment(property) ? property.name : property.initializer;
    const inner = entriesOf(packageName, value);
    if (inner) {
      collect(packageName, inner, elsewhere, `${path}.`, into);
      continue;
    }
    const found = documentation(property) ?? elsewhere?.get(name);
    const [text = "", ...rest] = found ?? [];
    into[path] = [text === "" ? `${words(name)}.` : text, ...rest];
  }
}

const descriptions = {};
for (const place of [...wanted].sort((a, b) => (a < b ? -1 : 1))) {
  const [packageName, name] = place.split(".");
  const entries = entriesOf(packageName, valueOf(packageName, name));
  if (entries === undefined) throw new Error(`expected ${place} to be v.strictObject({ … })`);
  let elsewhere;
  const other = documentedAt.get(place);
  if (other) {
    const found = findStatement(
      filesOf(other[0]),
      (statement) => ts.isInterfaceDeclaration(statement) && statement.name.text === other[1] && statement,
    );
    elsewhere = new Map(found.members.map((member) => [member.name.getText(), documentation(member)]));
  }
  descriptions[place] = {};
  collect(packageName, entries, elsewhere, "", descriptions[place]);
}

const body = Object.entries(descriptions)
  .map(
    ([place, keys]) =>
      `  ${JSON.stringify(place)}: {\n${Object.entries(keys)
        .map(([path, entry]) => `    ${JSON.stringify(path)}: ${JSON.stringify(entry)},\n`)
        .join("")}  },\n`,
  )
  .join("");
const text = `// Generated from the option schemas' docstrings by tools/gen-cli-descriptions.mjs. Do not edit.

/** Schema ("package.Name") → dotted key → [what it is, default as text]. */
export const descriptions: Readonly<Record<string, Readonly<Record<string, readonly [string, string?]>>>> = {
${body}};
`;

const formatter = spawnSync(process.execPath, [`${root}node_modules/oxfmt/bin/oxfmt`, "--stdin-filepath", target], {
  cwd: root,
  input: text,
  encoding: "utf8",
});
if (formatter.status !== 0) throw new Error(`expected oxfmt to format the file: ${formatter.stderr}`);

if (process.argv.includes("--check")) {
  if (!existsSync(target) || readFileSync(target, "utf8") !== formatter.stdout) {
    console.error("packages/cli/src/gen/descriptions.ts is out of date; run node tools/gen-cli-descriptions.mjs");
    process.exitCode = 1;
  }
} else {
  writeFileSync(`${target}.tmp`, formatter.stdout);
  renameSync(`${target}.tmp`, target);
}
