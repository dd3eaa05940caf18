import * as v from "valibot";
import { ApiError, badField, unsupportedField } from "./errors.js";

/** Deepest nesting of a request body; far beyond any real one, and safe for recursive code such as template filters. */
const MAX_DEPTH = 128;

const loneSurrogate = /\p{Surrogate}/u;

/**
 * Bytes of a body → object. Stricter than JSON.parse: valid UTF-8, an object, bounded nesting, no half surrogate pairs
 * (which no tokenizer can encode).
 * @throws {ApiError} 400
 */
export function parseJsonObject(bytes: Uint8Array): Record<string, unknown> {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new ApiError(400, "the body is not valid UTF-8", { code: "invalid_utf8" });
  }
  checkDepth(text);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new ApiError(400, `the body is not valid JSON: ${(error as Error).message}`, { code: "invalid_json" });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ApiError(400, "the body must be a JSON object", { code: "invalid_json" });
  }
  if (/\\u[dD][89a-fA-F]/.test(text)) checkSurrogates(value, "");
  return value as Record<string, unknown>;
}

/**
 * Checks a body against a schema. `null` means absent, as in OpenAI's API. Fields outside the schema go to `rules`: known
 * ones without effect pass, the rest are named in the error.
 * @throws {ApiError} 400 with `param`
 */
export function parseRequest<TSchema extends v.GenericSchema>(
  schema: TSchema & { entries: Record<string, unknown> },
  rules: Record<string, (value: unknown, body: Record<string, unknown>) => true | string>,
  body: Record<string, unknown>,
): v.InferOutput<TSchema> {
  const known: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(body)) {
    if (value === null) continue;
    const rule = Object.hasOwn(rules, key) ? rules[key] : undefined;
    const verdict = rule?.(value, body);
    if (typeof verdict === "string") throw unsupportedField(key, verdict);
    if (Object.hasOwn(schema.entries, key)) known[key] = value;
    else if (rule === undefined) throw badField(key, `unknown field '${key}'`, "unknown_parameter");
  }
  const result = v.safeParse(schema, known);
  if (result.success) return result.output;
  const { issue, path } = locate(result.issues[0]);
  const param = paramOf(path);
  if (issue.type === "strict_object") {
    if (issue.expected === "never") throw badField(param, `unknown field '${param}'`, "unknown_parameter");
    throw badField(param, `missing field '${param}'`, "missing_required_parameter");
  }
  const code = issue.kind === "schema" ? "invalid_type" : "invalid_value";
  throw badField(param, `${param}: ${issue.message.replace(/^Invalid (?:type|value|length): E/, "e")}`, code);
}

type Issue = v.BaseIssue<unknown>;
type Path = readonly unknown[];

/** Where a value went wrong. A union reports the branch that got furthest into the value, else itself. */
function locate(issue: Issue): { issue: Issue; path: Path } {
  const path = (issue.path ?? []).map(({ key }) => key);
  let best: { issue: Issue; path: Path } | undefined;
  for (const inner of issue.issues ?? []) {
    const candidate = locate(inner);
    // A branch that only disliked the type of the whole value tells less than the union itself.
    if (candidate.path.length === 0 && candidate.issue.kind === "schema") continue;
    if (best === undefined || comparePaths(candidate.path, best.path) > 0) best = candidate;
  }
  return best === undefined ? { issue, path } : { issue: best.issue, path: [...path, ...best.path] };
}

/** Positive when a lies further into the value than b. */
function comparePaths(a: Path, b: Path): number {
  for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return Number(a[i]) - Number(b[i]) || 0;
  return a.length - b.length;
}

/** `messages[0].content` */
function paramOf(path: Path): string {
  let text = "";
  for (const key of path) text += typeof key === "number" ? `[${key}]` : text === "" ? String(key) : `.${String(key)}`;
  return text;
}

function checkDepth(text: string): void {
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (inString) {
      if (c === 92) i++;
      else if (c === 34) inString = false;
    } else if (c === 34) inString = true;
    else if (c === 123 || c === 91) {
      if (++depth > MAX_DEPTH)
        throw new ApiError(400, `the body is nested deeper than ${MAX_DEPTH} levels`, { code: "invalid_json" });
    } else if (c === 125 || c === 93) depth--;
  }
}

function checkSurrogates(value: unknown, path: string): void {
  if (typeof value === "string") {
    if (loneSurrogate.test(value))
      throw badField(path, `${path}: the text has half a surrogate pair, which is no character`, "invalid_utf8");
  } else if (Array.isArray(value)) {
    value.forEach((item, i) => checkSurrogates(item, `${path}[${i}]`));
  } else if (typeof value === "object" && value !== null) {
    for (const [key, item] of Object.entries(value)) {
      const inner = path === "" ? key : `${path}.${key}`;
      checkSurrogates(key, inner);
      checkSurrogates(item, inner);
    }
  }
}
