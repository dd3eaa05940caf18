import { OptionsError } from "@llm/core";
import { pullDataset, pullModel, type PullProgress, PullOptions } from "@llm/models";
import * as v from "valibot";
import { defineCommand } from "../define-command.js";
import { formatBytes, formatDuration, type Terminal } from "../terminal.js";

export const PullFlags = v.strictObject({
  /** The name is a data set's, not a model's. @default false */
  dataset: v.optional(v.boolean(), false),
});

/** Shows all files as one line; a pipe gets a JSON line for a file at its start, its end, and every second between. */
function followFiles(terminal: Terminal): {
  report: (progress: PullProgress) => void;
  files: Map<string, PullProgress>;
} {
  const files = new Map<string, PullProgress>();
  const told = new Map<string, number>();
  const began = performance.now();
  const report = (progress: PullProgress): void => {
    files.set(progress.file, progress);
    const now = performance.now();
    const complete = progress.bytes === progress.totalBytes;
    if (complete || now - (told.get(progress.file) ?? -1000) >= 1000) {
      told.set(progress.file, now);
      terminal.record({ type: "progress", ...progress });
    }
    let bytes = 0;
    let total = 0;
    for (const file of files.values()) {
      bytes += file.bytes;
      total += file.totalBytes;
    }
    const open = [...files.values()].filter((file) => file.bytes < file.totalBytes).map(({ file }) => file);
    const rate = formatBytes((bytes * 1000) / Math.max(now - began, 1));
    terminal.progress(
      `${formatBytes(bytes)} of ${formatBytes(total)}  ${rate}/s  ${open.slice(0, 2).join(", ")}`,
      bytes,
      total,
    );
  };
  return { report, files };
}

export const pull = defineCommand({
  name: "pull",
  description:
    "Downloads a model or a data set from the Hugging Face hub or ModelScope into the cache (shared with Python's\nhuggingface_hub) or a folder. Interrupted downloads go on where they stopped; every file is checked.",
  arguments: [{ name: "name", description: "organisation/name", required: true }],
  groups: {
    own: { title: "Options", schema: PullFlags, docs: "cli.PullFlags", complete: true },
    pull: {
      title: "Hub",
      schema: PullOptions,
      docs: "models.PullOptions",
      omit: { signal: "Ctrl-C", onProgress: "a function" },
      commas: ["include", "exclude"],
    },
  },
  examples: [
    ["llm pull Qwen/Qwen2.5-0.5B-Instruct", "into the cache; prints the folder"],
    ["llm pull Qwen/Qwen2.5-0.5B --local-dir ./model", "plain files in a folder"],
    ["llm pull openai/gsm8k --dataset --source modelscope", "a data set, from ModelScope"],
  ],
  async run({ args, values: { own, pull: options }, signal, terminal }) {
    const name = args[0]!;
    if (args.length > 1) throw new OptionsError(`[llm pull] expected one name, got ${args.length}`);
    const began = performance.now();
    const { report, files } = followFiles(terminal);
    const folder = await (own.dataset ? pullDataset : pullModel)(name, { ...options, signal, onProgress: report });
    terminal.endProgress();
    const bytes = [...files.values()].reduce((sum, file) => sum + file.totalBytes, 0);
    const elapsedMs = performance.now() - began;
    terminal.result(`${name}: ${files.size} files, ${formatBytes(bytes)}, ${formatDuration(elapsedMs)}\n${folder}`, {
      type: "done",
      name,
      folder,
      files: files.size,
      bytes,
      elapsedMs,
    });
  },
});
