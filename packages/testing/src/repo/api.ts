import ts from "typescript";
import { readText, root, type Package } from "./workspace.js";

/** Name of each export → its kind: `function`, `class`, `const`, `type`, `const+type`, … */
export type PackageApi = Record<string, string>;

/** One exported name. */
export interface Export {
  readonly kind: string;
  /**
   * False when it needs a docstring and has none. Options and their schemas (`…Options`, `…Schema`) are documented key by key;
   * what another package made is documented there.
   */
  readonly documented: boolean;
}

const kinds: readonly (readonly [ts.SymbolFlags, string])[] = [
  [ts.SymbolFlags.Class, "class"],
  [ts.SymbolFlags.Function, "function"],
  [ts.SymbolFlags.Variable, "const"],
  [ts.SymbolFlags.Enum, "enum"],
  [ts.SymbolFlags.Module, "namespace"],
  [ts.SymbolFlags.Interface, "interface"],
  [ts.SymbolFlags.TypeAlias, "type"],
];

/** Compiler options of the root's tsconfig.json: `@llm/x` is read from its sources. */
export function sourceOptions(): ts.CompilerOptions {
  const config = ts.parseConfigFileTextToJson("tsconfig.json", readText("tsconfig.json"));
  const parsed = ts.parseJsonConfigFileContent({ ...config.config, include: [], files: [] }, ts.sys, root);
  return { ...parsed.options, noEmit: true, skipLibCheck: true };
}

/** Exports of each package's src/index.ts, from the compiler's symbols. */
export function readApi(of: readonly Package[]): Map<string, Map<string, Export>> {
  const entries = of.map(({ folder }) => `${root}packages/${folder}/src/index.ts`);
  const program = ts.createProgram(entries, sourceOptions());
  const checker = program.getTypeChecker();
  const result = new Map<string, Map<string, Export>>();
  of.forEach(({ name }, index) => {
    const file = program.getSourceFile(entries[index] ?? "");
    const module = file && checker.getSymbolAtLocation(file);
    const found = module ? checker.getExportsOfModule(module) : [];
    const exported = found
      .map((symbol): [string, Export] => {
        const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
        const kind = kinds.filter(([flag]) => target.flags & flag).map(([, text]) => text);
        const own = (target.declarations ?? []).some(
          (node) => !node.getSourceFile().fileName.includes("/node_modules/"),
        );
        const documented =
          !own ||
          /(Options|Schema)$/.test(symbol.name) ||
          target.getDocumentationComment(checker).length > 0 ||
          hasLeadingDocstring(symbol);
        return [symbol.name, { kind: kind.join("+") || "unresolved", documented }];
      })
      .sort(([a], [b]) => (a < b ? -1 : 1));
    result.set(name, new Map(exported));
  });
  return result;
}

/** A docstring before the export statement itself, as `export * as native from "./native.js"` has it. */
function hasLeadingDocstring(symbol: ts.Symbol): boolean {
  return (symbol.declarations ?? []).some((node) => {
    const statement = ts.findAncestor(node, ts.isExportDeclaration);
    if (statement?.exportClause === undefined || !ts.isNamespaceExport(statement.exportClause)) return false;
    return statement.getFullText().trimStart().startsWith("/**");
  });
}

/** Lines `+ @llm/core rmsNorm: function` and `- …`; empty when both are the same. */
export function apiDifference(stored: Record<string, PackageApi>, current: Record<string, PackageApi>): string[] {
  const flat = (api: Record<string, PackageApi>): string[] =>
    Object.entries(api).flatMap(([name, entries]) =>
      Object.entries(entries).map(([key, kind]) => `${name} ${key}: ${kind}`),
    );
  const before = new Set(flat(stored));
  const after = new Set(flat(current));
  return [
    ...[...before].filter((line) => !after.has(line)).map((line) => `- ${line}`),
    ...[...after].filter((line) => !before.has(line)).map((line) => `+ ${line}`),
  ].sort((a, b) => (a.slice(2) < b.slice(2) ? -1 : 1));
}
