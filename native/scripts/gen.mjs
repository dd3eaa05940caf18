// Reads native/ops.def and writes native/gen/ops.h, packages/core/src/gen/ops.ts and docs/ops.md.
// usage: node native/scripts/gen.mjs [--check]     --check fails when a written file differs from what would be written
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");

/** One parsed line: {name, family, inputs: [{name, strided, mutated, optional, variadic}], outputs, attributes, doc}. */
export function parseOpTable(text) {
  const ops = [];
  let family = "";
  for (const [index, line] of text.split("\n").entries()) {
    if (line.startsWith("## ")) family = line.slice(3).trim();
    if (line.startsWith("#") || line.trim() === "") continue;
    const match = /^(\w+)\(([^)]*)\)\s*->\s*([^;|]*)(?:;([^|]*))?(?:\|(.*))?$/.exec(line);
    if (!match)
      throw new Error(`ops.def:${index + 1}: expected "name(inputs) -> outputs ; attributes | text", got "${line}"`);
    const words = (s) => (s ?? "").split(/[\s,]+/).filter(Boolean);
    ops.push({
      name: match[1],
      family,
      inputs: words(match[2]).map((word) => ({
        name: /^\w+/.exec(word)[0],
        strided: word.includes("*"),
        mutated: word.includes("!"),
        optional: word.includes("?"),
        variadic: word.includes("..."),
      })),
      outputs: words(match[3]),
      attributes: words(match[4]),
      doc: (match[5] ?? "").trim(),
    });
  }
  return ops;
}

const camel = (name) => name.replace(/_(\w)/g, (_, c) => c.toUpperCase());
const safe = (name) => (name === "do" ? "dO" : camel(name));

/** One number that changes with the table: addon and TypeScript must agree on it. */
const abi = (ops) =>
  createHash("sha256")
    .update(JSON.stringify(ops.map(({ name, inputs, outputs, attributes }) => [name, inputs, outputs, attributes])))
    .digest()
    .readInt32LE(0);

function header(ops) {
  const flags = (i) => `{"${i.name}", ${i.strided}, ${i.mutated}, ${i.optional}, ${i.variadic}}`;
  return `// Generated from native/ops.def by native/scripts/gen.mjs. Do not edit.
#pragma once

namespace llm {

enum Op : int {
${ops.map((op, i) => `  op_${op.name} = ${i},`).join("\n")}
  op_count = ${ops.length}
};

constexpr int kAbi = ${abi(ops)};

struct InputSpec {
  const char* name;
  bool strided, mutated, optional, variadic;
};

struct OpSpec {
  const char* name;
  int n_inputs, n_outputs, n_attributes;
  InputSpec inputs[${Math.max(...ops.map((op) => op.inputs.length))}];
};

constexpr OpSpec kOps[op_count] = {
${ops.map((op) => `    {"${op.name}", ${op.inputs.length}, ${op.outputs.length}, ${op.attributes.length}, {${op.inputs.map(flags).join(", ")}}},`).join("\n")}
};

}  // namespace llm
`;
}

function typescript(ops) {
  const body = ops.map((op, id) => {
    const list = op.inputs.some((i) => i.variadic) && op.inputs.length === 1;
    const params = [
      ...op.inputs.map(
        (i) => `${safe(i.name)}: ${i.variadic ? "readonly Tensor[]" : i.optional ? "Tensor | null" : "Tensor"}`,
      ),
      ...op.attributes.map((a) => `${camel(a)}: number`),
    ];
    const result =
      op.outputs.length === 0
        ? "void"
        : op.outputs.length === 1
          ? "Tensor"
          : `[${op.outputs.map((o) => `${camel(o)}: Tensor`).join(", ")}]`;
    const inputs = list ? safe(op.inputs[0].name) : `[${op.inputs.map((i) => safe(i.name)).join(", ")}]`;
    const call = `submit(${id}, ${inputs}, [${op.attributes.map(camel).join(", ")}])`;
    const tail =
      op.outputs.length === 0
        ? `${call};`
        : op.outputs.length === 1
          ? `return ${call}[0]!;`
          : `return ${call} as [${op.outputs.map(() => "Tensor").join(", ")}];`;
    return `/** ${op.doc || `Gradient of ${op.name.replace(/_bwd$/, "")}.`} */\nexport function ${camel(op.name)}(${params.join(", ")}): ${result} {\n  ${tail}\n}`;
  });
  return `// Generated from native/ops.def by native/scripts/gen.mjs. Do not edit.
// Bare calls into the native core: no gradients. The differentiable ops are in src/ops/.
import { submit } from "../native.js";
import type { Tensor } from "../tensor.js";

/** Must equal what the addon reports. */
export const abi = ${abi(ops)};

export const opNames: readonly string[] = ${JSON.stringify(ops.map((op) => op.name))};

${body.join("\n\n")}
`;
}

function markdown(ops) {
  const lines = [
    "# Ops",
    "",
    "Generated from `native/ops.def`. Marks: `*` rows may be strided, `!` written in place, `?` optional, `...` repeats.",
    "",
  ];
  let family;
  for (const op of ops) {
    if (op.family !== family)
      lines.push(
        "",
        `## ${(family = op.family)}`,
        "",
        "| op | inputs | outputs | attributes | meaning |",
        "| --- | --- | --- | --- | --- |",
      );
    const input = (i) =>
      i.name + (i.strided ? "*" : "") + (i.mutated ? "!" : "") + (i.optional ? "?" : "") + (i.variadic ? "..." : "");
    lines.push(
      `| \`${op.name}\` | ${op.inputs.map(input).join(", ")} | ${op.outputs.join(", ")} | ${op.attributes.join(", ")} | ${op.doc.replace(/\|/g, "\\|")} |`,
    );
  }
  return `${lines.join("\n")}\n`;
}

const ops = parseOpTable(readFileSync(`${root}/native/ops.def`, "utf8"));
const files = {
  "native/gen/ops.h": header(ops),
  "packages/core/src/gen/ops.ts": typescript(ops),
  "docs/ops.md": markdown(ops),
};
let drift = false;
for (const [file, text] of Object.entries(files)) {
  const path = `${root}/${file}`;
  let old = "";
  try {
    old = readFileSync(path, "utf8");
  } catch {
    /* missing counts as drift */
  }
  if (process.argv.includes("--check")) {
    if (old !== text) {
      drift = true;
      console.error(`${file} is not what native/ops.def generates; run: node native/scripts/gen.mjs`);
    }
  } else if (old !== text) {
    // An untouched file keeps its time: everything that includes it stays built.
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  }
}
if (drift) process.exit(1);
