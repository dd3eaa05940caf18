/**
 * Loader hooks that let `import()` read TypeScript config files: types are stripped, `./x.js` may be `./x.ts`, and `@llm/x` is found
 * beside this package where the file's own folder has none. Node runs hooks in a thread of their own, hence a file of its own.
 */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { transform } from "sucrase";

interface Resolved {
  url: string;
  format?: string | null;
  shortCircuit?: boolean;
}
interface Context {
  parentURL?: string;
}
type NextResolve = (specifier: string, context: Context) => Promise<Resolved>;

/** Node's resolve hook. */
export async function resolve(specifier: string, context: Context, next: NextResolve): Promise<Resolved> {
  try {
    return await next(specifier, context);
  } catch (error) {
    if ((error as { code?: string }).code !== "ERR_MODULE_NOT_FOUND") throw error;
    if (/^\.{1,2}\/.*\.js$/.test(specifier)) return next(specifier.replace(/\.js$/, ".ts"), context);
    if (/^@llm\/[\w-]+$/.test(specifier)) return next(specifier, { ...context, parentURL: import.meta.url });
    throw error;
  }
}

interface Loaded {
  format: string;
  source: unknown;
  shortCircuit?: boolean;
}

/** Node's load hook. */
export async function load(
  url: string,
  context: object,
  next: (url: string, context: object) => Promise<Loaded>,
): Promise<Loaded> {
  if (!url.startsWith("file:") || !/\.m?ts$/.test(new URL(url).pathname)) return next(url, context);
  const file = fileURLToPath(url);
  const { code } = transform(await readFile(file, "utf8"), {
    transforms: ["typescript"],
    disableESTransforms: true,
    filePath: file,
  });
  return { format: "module", source: code, shortCircuit: true };
}
