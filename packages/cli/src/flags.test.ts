import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { Command } from "commander";
import * as v from "valibot";
import { describe, expect, test } from "vitest";
import { commandList } from "./command-list.js";
import { addFlags, type Flag, type FlagGroup, flagsOf, parseFlag, readFlags } from "./flags.js";
import { descriptions } from "./gen/descriptions.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const commands = await Promise.all(commandList.map(async ({ name, load }) => ({ name, command: await load() })));

/** Dotted keys of a schema; objects inside optional() are opened. */
function keysOf(entries: v.ObjectEntries, prefix = ""): string[] {
  return Object.entries(entries).flatMap(([name, entry]) => {
    let schema = entry as { type: string; wrapped?: never; entries?: v.ObjectEntries };
    while (schema.wrapped) schema = schema.wrapped;
    return schema.type === "strict_object" ? keysOf(schema.entries!, `${prefix}${name}.`) : [prefix + name];
  });
}

describe("the commands' flags", () => {
  test.each(commands)("of $name: every key of its schemas has a flag or is listed as having none", ({ command }) => {
    const flags = addFlags(new Command(command.name), command.groups);
    for (const [key, group] of Object.entries(command.groups)) {
      const covered = [
        ...flags.filter((flag) => flag.group === key).map(({ path }) => path.join(".")),
        ...Object.keys(group.omit ?? {}),
      ];
      expect(covered.sort(), group.title).toEqual(keysOf(group.schema.entries).sort());
    }
  });

  test.each(commands)(
    "of $name: two or three examples, with flags that exist and values that they take",
    ({ name, command }) => {
      expect(command.name).toBe(name);
      expect(command.examples.length).toBeGreaterThanOrEqual(2);
      expect(command.examples.length).toBeLessThanOrEqual(3);
      for (const [line] of command.examples) {
        const words = (line.match(/"[^"]*"|\S+/g) ?? []).map((word) => word.replaceAll('"', ""));
        const parser = new Command(name).exitOverride().allowExcessArguments();
        const flags = addFlags(parser, command.groups);
        parser.parse(words.slice(words.indexOf(name, words.indexOf("llm")) + 1), { from: "user" });
        expect(() => readFlags(parser, flags, command.groups)).not.toThrow();
      }
    },
  );

  test("descriptions are those of the schemas' docstrings", () => {
    const checked = spawnSync(process.execPath, [join(root, "tools/gen-cli-descriptions.mjs"), "--check"], {
      encoding: "utf8",
    });
    expect(checked.stderr).toBe("");
    expect(checked.status).toBe(0);
    expect(descriptions["parallel.TrainOptions"]?.["schedule.kind"]?.[1]).toBe('"cosine"');
  });
});

const documented = "parallel.TrainOptions";
const group = (schema: FlagGroup["schema"], more: Partial<FlagGroup> = {}): FlagGroup => ({
  title: "Test",
  schema,
  docs: documented,
  ...more,
});

describe("flags of a schema", () => {
  test("a key that no text can say must be listed, and the list may not name keys that are gone", () => {
    const withFunction = v.strictObject({ lr: v.optional(v.number()), signal: v.instance(AbortSignal) });
    expect(() => flagsOf("test", group(withFunction))).toThrow("signal: has no flag and is not omitted");
    expect(flagsOf("test", group(withFunction, { omit: { signal: "Ctrl-C" } })).map(({ name }) => name)).toEqual([
      "lr",
    ]);
    expect(() => flagsOf("test", group(withFunction, { omit: { signal: "Ctrl-C", gone: "" } }))).toThrow(
      "gone: is in omit",
    );
    expect(() => flagsOf("test", group(v.strictObject({ noSuchKey: v.number() })))).toThrow(
      "noSuchKey: has no description",
    );
    expect(() =>
      addFlags(new Command("test"), {
        a: group(v.strictObject({ lr: v.number() })),
        b: group(v.strictObject({ lr: v.number() })),
      }),
    ).toThrow("two flags are named --lr");
  });

  const flagOf = (schema: v.GenericSchema, more: Partial<Flag> = {}): Flag => ({
    ...flagsOf("test", group(v.strictObject({ lr: schema as never })))[0]!,
    ...more,
  });
  test.each<[string, v.GenericSchema, string[], unknown]>([
    ["a number", v.pipe(v.number(), v.minValue(0)), ["1e-4"], 1e-4],
    ["a choice", v.picklist(["a", "b"]), ["b"], "b"],
    ["a choice of numbers", v.picklist([32, 64]), ["64"], 64],
    ["numbers with commas", v.tuple([v.number(), v.number()]), ["0.9, 0.95"], [0.9, 0.95]],
    ["texts given several times", v.array(v.string()), ["a, b", "c"], ["a, b", "c"]],
    ["a word before a list", v.union([v.literal("all"), v.array(v.string())]), ["all"], "all"],
    ["a list where a word could be", v.union([v.literal("all"), v.array(v.string())]), ["q", "k"], ["q", "k"]],
    [
      "a regular expression",
      v.union([v.array(v.string()), v.instance(RegExp)]),
      ["/q_proj|k_proj/i"],
      /q_proj|k_proj/i,
    ],
    ["pairs", v.record(v.string(), v.string()), ["a=1", "b=x=y"], { a: "1", b: "x=y" }],
    ["pairs of JSON", v.record(v.string(), v.unknown()), ["think=false", "name=x"], { think: false, name: "x" }],
    ["a size", v.union([v.number(), v.string()]), ["2GB"], "2GB"],
    ["bytes", v.union([v.number(), v.string()]), ["4096"], 4096],
  ])("take %s", (_, schema, texts, value) => {
    expect(parseFlag(flagOf(schema), texts, "test")).toEqual(value);
  });

  test("texts are cut at commas where the flag says so", () => {
    expect(parseFlag(flagOf(v.array(v.string()), { commas: true }), ["q_proj, k_proj"], "test")).toEqual([
      "q_proj",
      "k_proj",
    ]);
  });

  test.each<[v.GenericSchema, string, string]>([
    [v.number(), "abc", 'expected a number, got "abc"'],
    [v.number(), "", 'expected a number, got ""'],
    [v.pipe(v.number(), v.minValue(1)), "0", "Expected >=1"],
    [v.picklist(["a", "b"]), "c", 'expected a|b, got "c"'],
    [v.record(v.string(), v.string()), "a", 'expected key=value, got "a"'],
  ])("refuse what does not fit %#", (schema, text, message) => {
    expect(() => parseFlag(flagOf(schema), [text], "test")).toThrow(message);
  });

  test("only what was given is handed on; --no- turns off, renames and prefixes hold, defaults are filled in where asked", () => {
    const schema = v.strictObject({
      lr: v.optional(v.number(), 1),
      checkpointing: v.optional(v.boolean(), true),
      checkpoint: v.optional(v.strictObject({ folder: v.string(), resume: v.union([v.boolean(), v.string()]) })),
    });
    const read = (words: string[], more: Partial<FlagGroup> = {}): unknown => {
      const command = new Command("test").exitOverride();
      const groups = { one: group(schema, { rename: { "checkpoint.resume": "resume" }, ...more }) };
      const flags = addFlags(command, groups);
      command.parse(words, { from: "user" });
      return readFlags(command, flags, groups)["one"];
    };
    expect(read([])).toEqual({});
    expect(read(["--no-checkpointing", "--resume"])).toEqual({ checkpointing: false, checkpoint: { resume: true } });
    expect(read(["--x-lr", "2", "--resume", "step-3", "--x-checkpoint-folder", "c"], { prefix: "x" })).toEqual({
      lr: 2,
      checkpoint: { resume: "step-3", folder: "c" },
    });
    expect(read([], { complete: true })).toEqual({ lr: 1, checkpointing: true });
  });
});

/** Modules that a file loads at once, and those that they load: no `import type`, no import(). */
function loadedAtOnce(file: string, seen = new Set<string>()): Set<string> {
  for (const [, kind, names, specifier] of readFileSync(file, "utf8").matchAll(
    /^(?:import|export)( type)?([^;]*?)from "([^"]+)";/gms,
  )) {
    if (kind !== undefined || /^\s*\{(\s*type \w+,?)*\s*\}\s*$/.test(names!)) continue;
    const path = specifier!.startsWith(".") ? resolve(dirname(file), specifier!.replace(/\.js$/, ".ts")) : specifier!;
    if (seen.has(path)) continue;
    seen.add(path);
    if (specifier!.startsWith(".")) loadedAtOnce(path, seen);
  }
  return seen;
}

test("`llm --help` loads commander and nothing of the packages", () => {
  const loaded = [...loadedAtOnce(fileURLToPath(new URL("main.ts", import.meta.url)))];
  expect(loaded.filter((name) => !name.startsWith("/") && !name.startsWith("node:")).sort()).toEqual([
    "commander",
    "picocolors",
  ]);
});
