// node tools/run-notebook.mjs file.ipynb [--write]: runs a notebook's TypeScript cells in order, without Jupyter.
// As in tslab, cells share one scope, may await and import, and the last expression's value is shown. `--write` stores the
// outputs in the notebook. Packages are found from this repository: `@llm/x` is packages/x/dist.
import { readFile, rename, writeFile } from "node:fs/promises";
import { basename, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { inspect } from "node:util";
import ts from "typescript";

/** A cell's JavaScript: types stripped, top-level declarations turned into assignments to the shared scope. */
function compileCell(source, scope) {
  const { outputText, diagnostics } = ts.transpileModule(source, {
    reportDiagnostics: true,
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      verbatimModuleSyntax: true,
      removeComments: true,
    },
  });
  if (diagnostics.length > 0) throw new SyntaxError(ts.flattenDiagnosticMessageText(diagnostics[0].messageText, " "));

  const file = ts.createSourceFile("cell.js", outputText, ts.ScriptTarget.ES2022, true);
  const declare = (name) => {
    if (!(name in scope)) scope[name] = undefined;
  };
  const first = [];
  const rest = [];
  const last = file.statements.findLast((statement) => text(statement) !== "export {};");
  for (const statement of file.statements) {
    if (ts.isImportDeclaration(statement)) first.push(compileImport(statement));
    else if (ts.isExportDeclaration(statement)) continue;
    else if (ts.isVariableStatement(statement)) {
      for (const { name, initializer } of statement.declarationList.declarations) {
        for (const bound of boundNames(name)) declare(bound);
        rest.push(`(${pattern(name)} = ${initializer ? text(initializer) : "undefined"});`);
      }
    } else if (ts.isFunctionDeclaration(statement)) {
      declare(statement.name.text);
      first.push(`${statement.name.text} = ${text(statement)};`);
    } else if (ts.isClassDeclaration(statement)) {
      declare(statement.name.text);
      rest.push(`${statement.name.text} = ${text(statement)};`);
    } else if (statement === last && ts.isExpressionStatement(statement)) {
      rest.push(`return { value: ${text(statement.expression)} };`);
    } else rest.push(text(statement));
  }
  return [...first, ...rest].join("\n");

  function compileImport({ importClause, moduleSpecifier }) {
    const module = `await __import(${moduleSpecifier.getText(file)})`;
    if (importClause === undefined) return `${module};`;
    const { name, namedBindings } = importClause;
    const wanted = name ? [`default: ${name.text}`] : [];
    if (name) declare(name.text);
    if (namedBindings && ts.isNamespaceImport(namedBindings)) {
      declare(namedBindings.name.text);
      const all = `${namedBindings.name.text} = ${module};`;
      return name ? `${all} ${name.text} = ${namedBindings.name.text}.default;` : all;
    }
    for (const element of namedBindings?.elements ?? []) {
      declare(element.name.text);
      wanted.push(`${(element.propertyName ?? element.name).text}: ${element.name.text}`);
    }
    return `({ ${wanted.join(", ")} } = ${module});`;
  }

  /** A binding pattern as an assignment pattern: the same text, `{ a: b = 1, ...rest }`. */
  function pattern(name) {
    return text(name);
  }

  function boundNames(name) {
    if (ts.isIdentifier(name)) return [name.text];
    return name.elements.flatMap((element) => (ts.isBindingElement(element) ? boundNames(element.name) : []));
  }

  /** Source of a node, with `import(…)` replaced by our own. */
  function text(node) {
    const calls = [];
    const visit = (child) => {
      if (ts.isCallExpression(child) && child.expression.kind === ts.SyntaxKind.ImportKeyword)
        calls.push(child.expression);
      ts.forEachChild(child, visit);
    };
    visit(node);
    const start = node.getStart(file);
    let result = node.getText(file);
    for (const call of calls.reverse()) {
      const at = call.getStart(file) - start;
      result = `${result.slice(0, at)}__import${result.slice(at + "import".length)}`;
    }
    return result;
  }
}

/** Runs the cells; each one's printed text and value go to `onOutput`. */
async function runNotebook(path, notebook, onOutput) {
  const scope = Object.create(null);
  const base = pathToFileURL(path);
  const importModule = (specifier) => import(specifier.startsWith(".") ? new URL(specifier, base).href : specifier);
  const cells = notebook.cells.filter((cell) => cell.cell_type === "code");
  for (const [index, cell] of cells.entries()) {
    const source = [cell.source].flat().join("");
    try {
      const body = compileCell(source, scope);
      // `with` makes every cell, and every function made by a cell, see the scope's current values.
      // oxlint-disable-next-line typescript/no-implied-eval -- running a cell's code is the purpose
      const run = new Function("__scope", "__import", `with (__scope) { return (async () => {\n${body}\n})(); }`);
      const result = await run(scope, importModule);
      onOutput(cell, index, result?.value);
    } catch (error) {
      const what = error instanceof Error ? `${error.name}: ${error.message}` : inspect(error);
      const shown = source
        .split("\n")
        .map((line) => `    ${line}`)
        .join("\n");
      throw new Error(`${basename(path)}, cell ${index + 1} of ${cells.length}: ${what}\n${shown}`, { cause: error });
    }
  }
}

const [file, ...flags] = process.argv.slice(2);
if (file === undefined || flags.some((flag) => flag !== "--write")) {
  console.error("usage: node tools/run-notebook.mjs file.ipynb [--write]");
  process.exit(2);
}
const path = resolve(file);
const notebook = JSON.parse(await readFile(path, "utf8"));
let printed = "";
const write = process.stdout.write.bind(process.stdout);
process.stdout.write = (chunk, ...rest) => {
  printed += chunk;
  return write(chunk, ...rest);
};
/** Text as a notebook stores it: an array of lines. */
const lines = (text) => text.split(/(?<=\n)/);
try {
  await runNotebook(path, notebook, (cell, index, value) => {
    const outputs = [];
    if (printed !== "") outputs.push({ output_type: "stream", name: "stdout", text: lines(printed) });
    if (value !== undefined) {
      const shown = inspect(value);
      write(`${shown}\n`);
      const data = { "text/plain": lines(shown) };
      outputs.push({ output_type: "execute_result", execution_count: index + 1, metadata: {}, data });
    }
    printed = "";
    cell.outputs = outputs;
    cell.execution_count = index + 1;
  });
  if (flags.includes("--write")) {
    await writeFile(`${path}.tmp`, `${JSON.stringify(notebook, null, 1)}\n`);
    await rename(`${path}.tmp`, path);
  }
} catch (error) {
  console.error(error.message);
  if (error.cause?.stack) console.error(error.cause.stack);
  process.exitCode = 1;
}
