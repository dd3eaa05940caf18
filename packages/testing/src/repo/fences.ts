import ts from "typescript";
import { sourceOptions } from "./api.js";
import { root } from "./workspace.js";

/** A fenced block of a Markdown file. */
export interface Fence {
  /** The Markdown file, relative to the root. */
  readonly path: string;
  /** Line of its first line of code, from 1. */
  readonly line: number;
  readonly language: string;
  /** Words after the language: `run`, `continue`, `no-check`. */
  readonly marks: readonly string[];
  readonly code: string;
}

/** Fences of a Markdown text, also those indented in a list. */
export function readFences(path: string, text: string): Fence[] {
  const fences: Fence[] = [];
  let open: { fence: string; indent: number; line: number; info: string[]; code: string[] } | undefined;
  text.split("\n").forEach((line, index) => {
    const match = /^(\s*)(`{3,}|~{3,})\s*(.*)$/.exec(line);
    if (open === undefined) {
      if (!match) return;
      open = {
        fence: match[2] ?? "",
        indent: (match[1] ?? "").length,
        line: index + 2,
        info: (match[3] ?? "").trim().split(/\s+/),
        code: [],
      };
    } else if (match && match[3] === "" && (match[2] ?? "").startsWith(open.fence)) {
      const [language = "", ...marks] = open.info;
      fences.push({ path, line: open.line, language, marks, code: open.code.join("\n") });
      open = undefined;
    } else {
      open.code.push(line.slice(Math.min(open.indent, line.length - line.trimStart().length)));
    }
  });
  return fences;
}

/** Blocks that form one program: a block and those after it that are marked `continue`. */
export interface Snippet {
  readonly blocks: readonly Fence[];
  /** True when the first block is marked `run`. */
  readonly run: boolean;
}

const knownMarks = new Set(["run", "continue", "no-check"]);

/** TypeScript snippets of a document's fences, in order. @throws Error for an unknown mark or a `continue` of nothing */
export function readSnippets(fences: readonly Fence[]): Snippet[] {
  const snippets: { blocks: Fence[]; run: boolean }[] = [];
  for (const fence of fences) {
    if (fence.language !== "ts" && fence.language !== "typescript") continue;
    const at = `${fence.path}:${fence.line}`;
    const unknown = fence.marks.find((mark) => !knownMarks.has(mark));
    if (unknown) throw new Error(`${at} expected the marks ${[...knownMarks].join(", ")}, got "${unknown}"`);
    if (fence.marks.includes("no-check")) continue;
    if (!fence.marks.includes("continue")) snippets.push({ blocks: [fence], run: fence.marks.includes("run") });
    else if (snippets.length === 0) throw new Error(`${at} is marked continue, but no ts block comes before it`);
    else snippets.at(-1)?.blocks.push(fence);
  }
  return snippets;
}

/** A notebook's code cells as one program; lines are counted within the cell. */
export function readNotebook(path: string, text: string): Snippet {
  const { cells } = JSON.parse(text) as { cells: { cell_type: string; source: string | string[] }[] };
  const code = cells.filter((cell) => cell.cell_type === "code");
  const blocks = code.map(({ source }, index): Fence => ({
    path: `${path} cell ${index + 1}`,
    line: 1,
    language: "ts",
    marks: [],
    code: [source].flat().join(""),
  }));
  return { blocks, run: false };
}

/** One module of a snippet's blocks; always a module, so that it may await. */
export function snippetText(snippet: Snippet): string {
  return `${snippet.blocks.map(({ code }) => code).join("\n")}\nexport {};\n`;
}

/** Markdown file and line of a line (from 0) of snippetText(). */
function placeOf(snippet: Snippet, line: number): string {
  let rest = line;
  for (const block of snippet.blocks) {
    const count = block.code.split("\n").length;
    if (rest < count) return `${block.path}:${block.line + rest}`;
    rest -= count;
  }
  const last = snippet.blocks.at(-1);
  return `${last?.path}:${last?.line}`;
}

/** Parsed files of the disk, shared by all checks of this process: the library's and the packages' own do not change. */
const parsed = new Map<string, ts.SourceFile | undefined>();

/** Type errors of the snippets against the packages' sources: `README.md:12: message`. */
export function checkSnippets(snippets: readonly Snippet[]): string[] {
  const options: ts.CompilerOptions = { ...sourceOptions(), noUnusedLocals: false };
  const virtual = new Map(snippets.map((snippet, index) => [`${root}examples/.snippet-${index}.ts`, snippet]));
  const host = ts.createCompilerHost(options);
  const { readFile, fileExists, getSourceFile } = host;
  host.fileExists = (file) => virtual.has(file) || fileExists.call(host, file);
  host.readFile = (file) => {
    const snippet = virtual.get(file);
    return snippet ? snippetText(snippet) : readFile.call(host, file);
  };
  host.getSourceFile = (file, languageVersion, ...rest) => {
    const snippet = virtual.get(file);
    if (snippet) return ts.createSourceFile(file, snippetText(snippet), languageVersion, true);
    if (!parsed.has(file)) parsed.set(file, getSourceFile.call(host, file, languageVersion, ...rest));
    return parsed.get(file);
  };
  const program = ts.createProgram([...virtual.keys()], options, host);
  return [...virtual].flatMap(([file, snippet]) => {
    const source = program.getSourceFile(file);
    const found = [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)];
    return found.map(({ messageText, start = 0 }) => {
      const line = source?.getLineAndCharacterOfPosition(start).line ?? 0;
      return `${placeOf(snippet, line)}: ${ts.flattenDiagnosticMessageText(messageText, " ")}`;
    });
  });
}

/** A command of a shell block: its words, comments and prompts removed. */
export interface ShellCommand {
  readonly at: string;
  readonly words: readonly string[];
}

/** The simple commands of a shell block: continued lines joined, pipes and lists split, variables before a command dropped. */
export function shellCommands(fence: Fence): ShellCommand[] {
  const commands: ShellCommand[] = [];
  const lines = fence.code.split("\n");
  for (let index = 0; index < lines.length; index += 1) {
    const at = `${fence.path}:${fence.line + index}`;
    let line = (lines[index] ?? "").trim();
    while (line.endsWith("\\") && index + 1 < lines.length) {
      index += 1;
      line = `${line.slice(0, -1)} ${(lines[index] ?? "").trim()}`;
    }
    const tokens = line.replace(/^\$\s+/, "").match(/"[^"]*"|'[^']*'|&&|\|\||[|;&]|[^\s|;&"']+/g) ?? [];
    let words: string[] = [];
    for (const token of [...tokens, ";"]) {
      if (token.startsWith("#")) break;
      if (!/^(&&|\|\||[|;&])$/.test(token)) words.push(token);
      else words = push(words);
    }
    push(words);

    function push(of: string[]): string[] {
      const first = of.findIndex((word) => !/^[A-Za-z_]\w*=/.test(word) && word !== "npx");
      if (first >= 0) commands.push({ at, words: of.slice(first) });
      return [];
    }
  }
  return commands;
}
