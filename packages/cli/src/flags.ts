/** Flags made from option schemas: names, kinds and defaults from valibot, descriptions from the keys' docstrings. */
import { LlmError, OptionsError } from "@llm/core";
import { type Command, Option } from "commander";
import * as v from "valibot";
import { descriptions } from "./gen/descriptions.js";

type ObjectSchema = v.StrictObjectSchema<v.ObjectEntries, v.ErrorMessage<v.StrictObjectIssue> | undefined>;

/** The flags of one options object. */
export interface FlagGroup {
  /** Heading in `--help`. */
  title: string;
  schema: ObjectSchema;
  /** Where the docstrings are, `package.Name`, several in order: see tools/gen-cli-descriptions.mjs. */
  docs: string | readonly string[];
  /** Put before every name: "lora" makes `--lora-rank`. */
  prefix?: string;
  /** Dotted keys that have no flag, and why. A key that cannot be a flag and is not here is an error. */
  omit?: Readonly<Record<string, string>>;
  /** Dotted key → the flag's whole name, without the dashes. */
  rename?: Readonly<Record<string, string>>;
  /** Dotted key → what the command does without the flag, where that is not the schema's default. */
  defaults?: Readonly<Record<string, string>>;
  /** Lists of texts that may also be written with commas. */
  commas?: readonly string[];
  /** Check the whole object and fill in its defaults; else only what was given is handed on. */
  complete?: boolean;
}

/** How a value may be written. */
type Form =
  | { kind: "text" | "number" | "boolean" | "regexp" }
  | { kind: "choice"; values: readonly (string | number | boolean)[] }
  | { kind: "list"; item: Form[]; fixed: boolean }
  | { kind: "record"; json: boolean };

export interface Flag {
  /** Without the dashes. */
  name: string;
  /** Key of the group. */
  group: string;
  path: readonly string[];
  schema: v.GenericSchema;
  forms: readonly Form[];
  /** Value of `--no-name`. */
  negative: false | null | undefined;
  /** Given several times: a list or a record. */
  repeats: boolean;
  commas: boolean;
  about: string;
  default: string | undefined;
}

const kebab = (key: string): string => key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

interface Unwrapped {
  schema: v.GenericSchema & Record<string, unknown>;
  nullable: boolean;
  fallback: unknown;
}

function unwrap(schema: v.GenericSchema): Unwrapped {
  let inner = schema as Unwrapped["schema"];
  let nullable = false;
  let fallback: unknown;
  while ("wrapped" in inner) {
    if (inner.type === "nullable" || inner.type === "nullish") nullable = true;
    if (fallback === undefined && typeof inner["default"] !== "function") fallback = inner["default"];
    inner = inner["wrapped"] as Unwrapped["schema"];
  }
  return { schema: inner, nullable, fallback };
}

/** How values of a schema may be written; empty when no text can say them. */
function formsOf(schema: v.GenericSchema): Form[] {
  const { schema: inner } = unwrap(schema);
  switch (inner.type) {
    case "string":
      return [{ kind: "text" }];
    case "number":
      return [{ kind: "number" }];
    case "boolean":
      return [{ kind: "boolean" }];
    case "literal":
      return [{ kind: "choice", values: [inner["literal"] as string | number | boolean] }];
    case "picklist":
      return [{ kind: "choice", values: inner["options"] as (string | number)[] }];
    case "union":
      return (inner["options"] as v.GenericSchema[]).flatMap(formsOf);
    case "array": {
      const item = formsOf(inner["item"] as v.GenericSchema);
      return item.length > 0 && item.every((form) => form.kind !== "list" && form.kind !== "record")
        ? [{ kind: "list", item, fixed: false }]
        : [];
    }
    case "tuple":
      return [{ kind: "list", item: formsOf((inner["items"] as v.GenericSchema[])[0]!), fixed: true }];
    case "record": {
      const value = inner["value"] as v.GenericSchema;
      return value.type === "string" || value.type === "unknown"
        ? [{ kind: "record", json: value.type === "unknown" }]
        : [];
    }
    case "instance":
      return inner["class"] === RegExp ? [{ kind: "regexp" }] : [];
    default:
      return [];
  }
}

/**
 * The flags of a group, in the schema's order.
 * @throws {LlmError} INTERNAL: a key that cannot be a flag and is not in `omit`, a stale `omit` or `rename`, or a key without a description
 */
export function flagsOf(key: string, group: FlagGroup): Flag[] {
  const flags: Flag[] = [];
  const docs = typeof group.docs === "string" ? [group.docs] : group.docs;
  const unused = new Set([
    ...Object.keys(group.omit ?? {}),
    ...Object.keys(group.rename ?? {}),
    ...Object.keys(group.defaults ?? {}),
    ...(group.commas ?? []),
  ]);
  const fail = (path: string, problem: string): never => {
    throw new LlmError("INTERNAL", `[llm] ${docs.join(", ")} ${path}: ${problem}`, { path });
  };
  const walk = (entries: v.ObjectEntries, parents: readonly string[]): void => {
    for (const [name, schema] of Object.entries(entries)) {
      const path = [...parents, name];
      const dotted = path.join(".");
      unused.delete(dotted);
      if (group.omit && Object.hasOwn(group.omit, dotted)) continue;
      const { schema: inner, nullable, fallback } = unwrap(schema as v.GenericSchema);
      if (inner.type === "strict_object") {
        walk(inner["entries"] as v.ObjectEntries, path);
        continue;
      }
      const forms = formsOf(inner);
      if (forms.length === 0) fail(dotted, "has no flag and is not omitted");
      const documented = docs.map((place) => descriptions[place]?.[dotted]).find((entry) => entry !== undefined);
      if (!documented) fail(dotted, "has no description; run node tools/gen-cli-descriptions.mjs");
      const [about, defaultText] = documented!;
      const negatable = forms.some(
        (form) => form.kind === "boolean" || (form.kind === "choice" && form.values.includes(false)),
      );
      flags.push({
        name:
          group.rename?.[dotted] ??
          [...(group.prefix === undefined ? [] : [group.prefix]), ...path.map(kebab)].join("-"),
        group: key,
        path,
        schema: inner,
        forms,
        negative: nullable ? null : negatable ? false : undefined,
        repeats: forms.some((form) => form.kind === "list" || form.kind === "record"),
        commas: group.commas?.includes(dotted) ?? false,
        about,
        default:
          group.defaults?.[dotted] ??
          (fallback === undefined || typeof fallback === "object" ? defaultText : JSON.stringify(fallback)),
      });
    }
  };
  walk(group.schema.entries, []);
  for (const flag of flags) {
    flag.about = inFlags(flag.about, flags);
    if (flag.default !== undefined) flag.default = inFlags(flag.default, flags);
  }
  for (const path of unused) fail(path, "is in omit, rename, defaults or commas, but the schema has no such key");
  return flags;
}

/** A docstring's `key` as the flag of that key. */
function inFlags(text: string, flags: readonly Flag[]): string {
  return text.replace(/`(\w+)`/g, (quoted, key: string) => {
    const flag = flags.find(({ path }) => path.at(-1) === key);
    return flag ? `--${flag.name}` : quoted;
  });
}

/** What stands for the value in `--help`. */
function placeholder(forms: readonly Form[]): string {
  const words = forms.flatMap((form): string[] => {
    if (form.kind === "choice") return form.values.filter((value) => typeof value !== "boolean").map(String);
    if (form.kind === "list") return [placeholder(form.item) + (form.fixed ? ",…" : "")];
    if (form.kind === "record") return ["key=value"];
    return form.kind === "regexp" ? ["/pattern/"] : form.kind === "boolean" ? [] : [form.kind];
  });
  return [...new Set(words)].join("|");
}

/** Whether the flag takes a value. */
function takesValue(flag: Flag): "no" | "maybe" | "yes" {
  const boolean = flag.forms.some((form) => form.kind === "boolean");
  return boolean ? (flag.forms.length > 1 ? "maybe" : "no") : "yes";
}

/** Options of commander for a flag: the visible one first. */
function optionsOf(flag: Flag, title: string): Option[] {
  const takes = takesValue(flag);
  const word = placeholder(flag.forms);
  const value = takes === "no" ? "" : takes === "maybe" ? ` [${word}]` : ` <${word}>`;
  const suffix = flag.default === undefined ? "" : ` (default: ${flag.default})`;
  const option = new Option(`--${flag.name}${value}`, `${flag.about}${suffix}`).helpGroup(`${title}:`);
  option.argParser((text: string, before: unknown) =>
    flag.repeats ? [...((before as string[] | undefined) ?? []), text] : text,
  );
  if (flag.negative === undefined) return [option];
  return [option, new Option(`--no-${flag.name}`, `not --${flag.name}`).helpGroup(`${title}:`).hideHelp()];
}

/**
 * Adds the flags of all groups to a command.
 * @returns the flags, for `readFlags`
 * @throws {LlmError} INTERNAL: two flags of one name
 */
export function addFlags(command: Command, groups: Readonly<Record<string, FlagGroup>>): Flag[] {
  const flags = Object.entries(groups).flatMap(([key, group]) => flagsOf(key, group));
  const names = new Set<string>();
  for (const flag of flags) {
    if (names.has(flag.name))
      throw new LlmError("INTERNAL", `[llm ${command.name()}] two flags are named --${flag.name}; rename one`, {
        name: flag.name,
      });
    names.add(flag.name);
    for (const option of optionsOf(flag, groups[flag.group]!.title)) command.addOption(option);
  }
  command.configureHelp({
    optionTerm: (option) => {
      const flag = flags.find(({ name }) => option.long === `--${name}`);
      const shown = flag?.negative !== undefined && flag.default !== "false";
      return shown ? `${option.flags}, --no-${flag.name}` : option.flags;
    },
  });
  return flags;
}

/** Values that a text may mean, the most specific first. */
function* candidates(form: Form, texts: readonly string[], commas: boolean): Generator {
  const text = texts.at(-1)!;
  switch (form.kind) {
    case "choice":
      for (const value of form.values) if (String(value) === text && texts.length === 1) yield value;
      return;
    case "regexp": {
      const match = /^\/(.+)\/([a-z]*)$/s.exec(text);
      if (match && texts.length === 1) yield new RegExp(match[1]!, match[2]);
      return;
    }
    case "number":
      if (text.trim() !== "" && !Number.isNaN(Number(text))) yield Number(text);
      return;
    case "boolean":
      if (text === "true" || text === "false") yield text === "true";
      return;
    case "list": {
      const textual = form.item.some((item) => item.kind === "text");
      const parts = commas || !textual ? texts.flatMap((part) => part.split(",").map((piece) => piece.trim())) : texts;
      const list: unknown[] = [];
      for (const part of parts) {
        const [value] = form.item.flatMap((item) => [...candidates(item, [part], false)]);
        if (value === undefined) return;
        list.push(value);
      }
      yield list;
      return;
    }
    case "record": {
      const entries = texts.map(
        (pair) => [pair.slice(0, Math.max(pair.indexOf("="), 0)), pair.slice(pair.indexOf("=") + 1)] as const,
      );
      if (entries.some(([name]) => name === "")) return;
      yield Object.fromEntries(entries.map(([name, value]) => [name, form.json ? jsonOrText(value) : value]));
      return;
    }
    case "text":
      yield text;
  }
}

function jsonOrText(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

const order: readonly Form["kind"][] = ["choice", "regexp", "number", "boolean", "record", "list", "text"];

/**
 * The value that was written.
 * @throws {OptionsError} it fits no form of the flag
 */
export function parseFlag(
  flag: Pick<Flag, "name" | "schema" | "forms" | "commas">,
  texts: readonly string[],
  where: string,
): unknown {
  let problem: string | undefined;
  const sorted = [...flag.forms].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  for (const form of sorted) {
    for (const value of candidates(form, texts, flag.commas)) {
      const result = v.safeParse(flag.schema, value);
      if (result.success) return value;
      problem ??= result.issues[0].message;
    }
  }
  const got = texts.map((text) => JSON.stringify(text)).join(" ");
  const expected = placeholder(flag.forms).replace(/^number$/, "a number");
  throw new OptionsError(
    `[${where}] --${flag.name}: expected ${expected}, got ${got}${problem === undefined ? "" : ` (${problem})`}`,
    { flag: flag.name },
  );
}

function put(target: Record<string, unknown>, path: readonly string[], value: unknown): void {
  let at = target;
  for (const key of path.slice(0, -1)) at = (at[key] ??= {}) as Record<string, unknown>;
  at[path.at(-1)!] = value;
}

/**
 * The values that were given, by group.
 * @throws {OptionsError} a value that does not fit, or something required that is missing
 */
export function readFlags(
  command: Command,
  flags: readonly Flag[],
  groups: Readonly<Record<string, FlagGroup>>,
): Record<string, Record<string, unknown>> {
  const where = `llm ${command.name()}`;
  const values: Record<string, Record<string, unknown>> = Object.fromEntries(
    Object.keys(groups).map((key) => [key, {}]),
  );
  for (const flag of flags) {
    const option = command.options.find(({ long }) => long === `--${flag.name}`)!;
    if (command.getOptionValueSource(option.attributeName()) !== "cli") continue;
    const given = command.getOptionValue(option.attributeName()) as boolean | string | string[];
    const value = given === false ? flag.negative : given === true ? true : parseFlag(flag, [given].flat(), where);
    put(values[flag.group]!, flag.path, value);
  }
  for (const [key, group] of Object.entries(groups)) {
    if (!group.complete) continue;
    const required = (name: string): boolean => (group.schema.entries[name] as v.GenericSchema).type !== "optional";
    const missing = flags.find((flag) => {
      const [name = ""] = flag.path;
      return flag.group === key && required(name) && !Object.hasOwn(values[key]!, name);
    });
    if (missing)
      throw new OptionsError(
        `[${where}] expected --${missing.name} <${placeholder(missing.forms)}>: ${missing.about}`,
        { flag: missing.name },
      );
    const result = v.safeParse(group.schema, values[key]);
    if (!result.success)
      throw new OptionsError(
        `[${where}] ${result.issues.map((issue) => `${v.getDotPath(issue) ?? ""}: ${issue.message}`).join("; ")}`,
      );
    values[key] = result.output;
  }
  return values;
}

/** Adds the flags' names to an OptionsError that names keys. */
export function explainOptions(message: string, issues: unknown, flags: readonly Flag[]): string {
  if (!Array.isArray(issues)) return message;
  const paths = new Set((issues as { path?: unknown }[]).map(({ path }) => path));
  const names = flags.filter((flag) => paths.has(flag.path.join("."))).map((flag) => `--${flag.name}`);
  return names.every((name) => message.includes(name)) ? message : `${message} (${names.join(", ")})`;
}
