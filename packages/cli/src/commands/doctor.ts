import { readdirSync, readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { cpus, freemem, homedir, release, totalmem } from "node:os";
import { join } from "node:path";
import { type DoctorReport, LlmError, memory, nativeDoctor } from "@llm/core";
import * as v from "valibot";
import { defineCommand } from "../define-command.js";
import { deviceRows, deviceStatus } from "../doctor-cuda.js";
import { formatBytes } from "../terminal.js";
import { ownVersion } from "../version.js";

export const DoctorFlags = v.strictObject({
  /** Print one JSON object. @default false */
  json: v.optional(v.boolean(), false),
});

interface CacheReport {
  name: string;
  path: string;
  exists: boolean;
  models: number;
  datasets: number;
  bytes: number;
}

const packageNames = ["core", "models", "data", "parallel", "lora", "distill", "quant-awq", "kvcache", "serve", "eval"];

/** Versions of the packages that this command uses. */
function versions(): Record<string, string> {
  const require = createRequire(import.meta.url);
  const found: Record<string, string> = { "@llm/cli": ownVersion() };
  for (const name of [
    ...packageNames.map((short) => `@llm/${short}`),
    `@llm/native-${process.platform}-${process.arch}`,
    `@llm/native-${process.platform}-${process.arch}-cuda`,
    "onnxruntime-node",
  ]) {
    try {
      const manifest = JSON.parse(readFileSync(require.resolve(`${name}/package.json`), "utf8")) as { version: string };
      found[name] = manifest.version;
    } catch {
      found[name] = "not installed";
    }
  }
  return found;
}

/** Bytes of the files below a folder; links are not followed. */
function bytesBelow(folder: string): number {
  let bytes = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) bytes += bytesBelow(path);
    else if (entry.isFile()) bytes += statSync(path).size;
  }
  return bytes;
}

/** The hub's cache, where `llm pull` puts models. */
function hubCache(): CacheReport {
  const set = (name: string): string | undefined => process.env[name] || undefined;
  const home = set("HF_HOME") ?? join(set("XDG_CACHE_HOME") ?? join(homedir(), ".cache"), "huggingface");
  const path = set("HF_HUB_CACHE") ?? set("HUGGINGFACE_HUB_CACHE") ?? join(home, "hub");
  const report: CacheReport = { name: "hub", path, exists: false, models: 0, datasets: 0, bytes: 0 };
  try {
    const names = readdirSync(path);
    report.exists = true;
    report.models = names.filter((name) => name.startsWith("models--")).length;
    report.datasets = names.filter((name) => name.startsWith("datasets--")).length;
    report.bytes = bytesBelow(path);
  } catch {
    // Not there yet, or not readable: nothing is cached for us.
  }
  return report;
}

/** Ops by the variant of kernel that they run. */
function byVariant(kernels: DoctorReport["kernels"]): Record<string, string[]> {
  const groups: Record<string, string[]> = {};
  for (const [op, variant] of Object.entries(kernels)) (groups[variant] ??= []).push(op);
  return Object.fromEntries(Object.entries(groups).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function wrap(words: readonly string[], indent: string, width = 100): string {
  const lines: string[] = [];
  let line = indent;
  for (const word of words) {
    if (line.length + word.length + 1 > width && line !== indent) {
      lines.push(line);
      line = indent;
    }
    line += line === indent ? word : ` ${word}`;
  }
  return [...lines, line].join("\n");
}

export const doctor = defineCommand({
  name: "doctor",
  description:
    "Says what this machine offers: Node, processor, native core and the kernels that it picked, GPU and CUDA or why there is\nnone, memory, versions, caches. Exit code 1 when the native core is missing; a machine without a GPU is fine.",
  arguments: [],
  groups: { own: { title: "Options", schema: DoctorFlags, docs: "cli.DoctorFlags", complete: true } },
  examples: [
    ["llm doctor", "for people"],
    ["llm doctor --json", "for programs, and for bug reports"],
    ["LLM_CPU_ISA=avx2 llm doctor", "what a machine without AVX-512 would run"],
  ],
  async run({ values: { own }, terminal }) {
    let native: DoctorReport | undefined;
    let missing: string | undefined;
    try {
      native = nativeDoctor();
    } catch (error) {
      if (!LlmError.isInstance(error)) throw error;
      missing = error.message;
    }
    const variants = byVariant(native?.kernels ?? {});
    const scalar = variants["scalar"] ?? [];
    const devices = deviceStatus();
    const report = {
      ok: native !== undefined,
      node: process.version,
      platform: `${process.platform}-${process.arch}`,
      system: release(),
      cpu: { model: cpus()[0]?.model ?? "unknown", cores: cpus().length },
      memory: { totalBytes: totalmem(), freeBytes: freemem(), ...(native ? { native: memory("cpu") } : {}) },
      native: native
        ? {
            path: native.path,
            isa: native.isa,
            detectedIsa: native.detectedIsa,
            threads: native.threads,
            kernels: native.kernels,
            scalarOps: scalar,
          }
        : null,
      ...devices,
      ...(missing === undefined ? {} : { missing }),
      versions: versions(),
      caches: [hubCache()],
    };
    if (own.json) terminal.print(`${JSON.stringify(report, null, 2)}\n`);
    else {
      const { bold, dim, green, red, yellow } = terminal.colors;
      const row = (name: string, value: string): string => `${bold(name.padEnd(10))} ${value}`;
      const isa =
        native &&
        (native.isa === native.detectedIsa
          ? green(native.isa)
          : `${yellow(native.isa)} (this processor has ${native.detectedIsa}; LLM_CPU_ISA lowers it)`);
      const lines = [
        row("node", `${report.node} on ${report.platform}, ${report.system}`),
        row("processor", `${report.cpu.model}, ${report.cpu.cores} cores`),
        row("memory", `${formatBytes(report.memory.freeBytes)} free of ${formatBytes(report.memory.totalBytes)}`),
        ...(native
          ? [
              row("native", `${green("ok")} ${native.path}`),
              row("isa", isa!),
              row("threads", String(native.threads)),
              row(
                "kernels",
                Object.entries(variants)
                  .map(([name, ops]) => `${name} ${ops.length}`)
                  .join(", "),
              ),
              ...(scalar.length === 0 ? [] : [dim("  these ops run the scalar reference:"), dim(wrap(scalar, "  "))]),
            ]
          : [row("native", red("missing")), missing!.replace(/^/gm, "  ")]),
        ...deviceRows(devices).map(([name, value]) =>
          row(name, name === "gpu" && devices.cuda.ok ? `${green("ok")} ${value}` : value),
        ),
        row(
          "versions",
          Object.entries(report.versions)
            .map(([name, version]) => `${name} ${version}`)
            .join(", "),
        ),
        ...report.caches.map((cache) =>
          row(
            "cache",
            `${cache.path} ${cache.exists ? `(${cache.models} models, ${cache.datasets} data sets, ${formatBytes(cache.bytes)})` : "(empty)"}`,
          ),
        ),
      ];
      terminal.print(`${lines.join("\n")}\n`);
    }
    return native ? 0 : 1;
  },
});
