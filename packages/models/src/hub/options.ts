import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";

/** How far one file is. */
export interface PullProgress {
  /** Path in the repository. */
  file: string;
  /** Bytes of this file that are on disk, those of an earlier, interrupted download included. */
  bytes: number;
  /** Size of this file in bytes. */
  totalBytes: number;
}

const text = v.pipe(v.string(), v.minLength(1));

/** Options of {@link pullModel}, {@link pullDataset} and {@link resolveModelFolder}. */
export const PullOptions = v.strictObject({
  /** Where to download from. @default "huggingface" */
  source: v.optional(v.picklist(["huggingface", "modelscope"]), "huggingface"),
  /** Branch, tag or commit. @default "main", on ModelScope "master" */
  revision: v.optional(v.pipe(text, v.regex(/^(?!.*\.\.)[\w][\w./+@-]*$/, "expected a branch, a tag or a commit"))),
  /** URL of the hub. @default HF_ENDPOINT or https://huggingface.co; MODELSCOPE_ENDPOINT or https://modelscope.cn */
  endpoint: v.optional(v.pipe(v.string(), v.url())),
  /**
   * Access token; "" sends none. It is sent to the endpoint only, never to a host that the endpoint redirects to.
   * @default HF_TOKEN or the token file of `hf auth login`; MODELSCOPE_API_TOKEN
   */
  token: v.optional(v.string()),
  /**
   * Folder of the cache, in the layout of huggingface_hub. Not together with `localDir`.
   * @default HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub
   */
  cacheDir: v.optional(text),
  /** Puts plain files into this folder instead of the cache. */
  localDir: v.optional(text),
  /**
   * Only files that match one of these globs: `*` any characters (also /), `?` one, `[abc]` one of these; a glob that ends
   * in / means the whole folder.
   * @default data sets: everything; models: weights as safetensors (*.bin only where there are none), *.json, tokenizer and template files
   */
  include: v.optional(v.array(text)),
  /** No file that matches one of these globs. */
  exclude: v.optional(v.array(text), []),
  /** Files downloaded at once. @default 8 */
  parallel: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(64)), 8),
  /** Send no request: use what is on disk, or fail. @default HF_HUB_OFFLINE */
  offline: v.optional(v.boolean()),
  /** Times that a failed request (429, 5xx, broken connection) is tried again without any progress. @default 5 */
  retries: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 5),
  /** Wait before the first retry, in milliseconds; doubles each time up to 30 s. `Retry-After` of the server wins. @default 1000 */
  retryDelayMs: v.optional(v.pipe(v.number(), v.minValue(0)), 1000),
  /** Stops the download; what has arrived is kept and continued next time. */
  signal: v.optional(v.instance(AbortSignal)),
  /** Called as bytes arrive. */
  onProgress: v.optional(
    v.custom<(progress: PullProgress) => void>((value) => typeof value === "function", "expected a function"),
  ),
});
export type PullOptions = v.InferInput<typeof PullOptions>;

/** Options with what the environment adds. */
export interface ResolvedPullOptions extends v.InferOutput<typeof PullOptions> {
  revision: string;
  endpoint: string;
  cacheDir: string;
  offline: boolean;
}

function variable(...names: string[]): string | undefined {
  return names.map((name) => process.env[name]).find((value) => value !== undefined && value !== "");
}

/** `~/.cache/huggingface`, or where HF_HOME or XDG_CACHE_HOME put it. */
function huggingFaceHome(): string {
  return variable("HF_HOME") ?? join(variable("XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "huggingface");
}

/** Checks the options and fills in what the environment says. @throws {OptionsError} */
export function resolvePullOptions(options: unknown, where: string): ResolvedPullOptions {
  const parsed = parseOptions(PullOptions, options, where);
  if (parsed.localDir !== undefined && parsed.cacheDir !== undefined) {
    throw new OptionsError(
      `[${where}] expected cacheDir or localDir, got both: with localDir nothing goes through the cache`,
    );
  }
  const onModelScope = parsed.source === "modelscope";
  const endpoint =
    parsed.endpoint ??
    (onModelScope
      ? (variable("MODELSCOPE_ENDPOINT") ?? "https://modelscope.cn")
      : (variable("HF_ENDPOINT") ?? "https://huggingface.co"));
  if (!URL.canParse(endpoint))
    throw new OptionsError(`[${where}] expected the endpoint to be a URL, got ${JSON.stringify(endpoint)}`);
  return {
    ...parsed,
    revision: parsed.revision ?? (onModelScope ? "master" : "main"),
    endpoint: endpoint.replace(/\/+$/, ""),
    cacheDir: parsed.cacheDir ?? variable("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") ?? join(huggingFaceHome(), "hub"),
    offline: parsed.offline ?? /^(1|on|yes|true)$/i.test(variable("HF_HUB_OFFLINE") ?? ""),
  };
}

/** The token to send: the option, the environment, the file that `hf auth login` writes; "" or nothing = none. */
export async function findToken({ token, source }: ResolvedPullOptions): Promise<string | undefined> {
  if (token !== undefined) return token || undefined;
  if (source === "modelscope") return variable("MODELSCOPE_API_TOKEN");
  const set = variable("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN");
  if (set !== undefined) return set.trim();
  const content = await readFile(variable("HF_TOKEN_PATH") ?? join(huggingFaceHome(), "token"), "utf8").catch(() => "");
  return content.trim() || undefined;
}

const modelFiles = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"];

/** A glob in the manner of Python's fnmatch, as huggingface_hub uses it. */
function globToRegExp(glob: string): RegExp {
  const source = (glob.endsWith("/") ? `${glob}*` : glob).replace(
    /\[(!?)([^\]]+)\]|[\s\S]/g,
    (part, not: string | undefined, set: string | undefined) => {
      if (set !== undefined) return `[${not === "!" ? "^" : ""}${set.replace(/[\\^[]/g, "\\$&")}]`;
      if (part === "*") return "[\\s\\S]*";
      if (part === "?") return "[\\s\\S]";
      return part.replace(/[\\^$.|+()[\]{}/-]/g, "\\$&");
    },
  );
  return new RegExp(`^${source}$`);
}

/** Which of a repository's files are wanted. */
export function selectFiles<T extends { path: string }>(
  files: readonly T[],
  kind: "model" | "dataset",
  { include, exclude }: Pick<ResolvedPullOptions, "include" | "exclude">,
): T[] {
  const weights = files.some(({ path }) => path.endsWith(".safetensors")) ? [] : ["*.bin"];
  const wanted = (include ?? (kind === "model" ? [...modelFiles, ...weights] : ["*"])).map(globToRegExp);
  const unwanted = exclude.map(globToRegExp);
  return files.filter(
    ({ path }) => wanted.some((glob) => glob.test(path)) && !unwanted.some((glob) => glob.test(path)),
  );
}
