import { OptionsError } from "@llm/core";
import { type Dataset, tokenBlocks } from "@llm/data";
import { LoadModelOptions, SaveModelOptions } from "@llm/models";
import {
  comparePerplexity,
  perplexityOf,
  quantize as quantizeModel,
  QuantizeOptions,
  saveQuantized,
} from "@llm/quant-awq";
import * as v from "valibot";
import { readFile } from "node:fs/promises";
import { defineCommand } from "../define-command.js";
import { openModel } from "../open-model.js";
import { formatBytes, formatDuration } from "../terminal.js";
import { readData } from "../training.js";

const text = v.pipe(v.string(), v.nonEmpty());

export const QuantizeFlags = v.strictObject({
  /** Folder that the quantized model is written to. */
  output: text,
  /** For AWQ, what the model reads while its activations are measured: text, jsonl, json, csv, or organisation/name:file on the hub. Give it once per file. */
  calibration: v.optional(v.array(text), []),
  /** Format of the calibration data. @default found by the columns */
  format: v.optional(text),
  /** A text file: its perplexity is measured before and after. */
  perplexity: v.optional(text),
  /** Tokens of a block whose perplexity is measured. @default 512 */
  perplexityTokens: v.optional(v.pipe(v.number(), v.integer(), v.minValue(2)), 512),
});

/** Documents of the calibration files; long ones are cut by quantize(). */
function readCalibration(
  files: readonly string[],
  format: string | undefined,
  model: Parameters<typeof readData>[1],
  signal: AbortSignal,
): Promise<Dataset> {
  const plain = files.every((file) => /\.txt(\.gz)?$/i.test(file));
  return readData(
    [...files],
    model,
    {
      ...(format === undefined ? {} : { format }),
      trainOn: "all",
      packing: "none",
      overlong: plain ? "split" : "truncate",
    },
    signal,
  );
}

export const quantize = defineCommand({
  name: "quantize",
  description:
    "Quantizes the linears of a model to 4 bits and writes an AutoAWQ folder, which vLLM, LMDeploy and transformers load too.\nAWQ searches scales on calibration data; rtn rounds to nearest and needs none. Merge adapters first.",
  arguments: [{ name: "model", description: "folder or hub name", required: true }],
  groups: {
    own: { title: "Options", schema: QuantizeFlags, docs: "cli.QuantizeFlags", complete: true },
    quantize: {
      title: "Quantization",
      schema: QuantizeOptions,
      docs: "quant-awq.QuantizeOptions",
      omit: { calibration: "--calibration", signal: "Ctrl-C", onProgress: "a function" },
      commas: ["modulesToNotConvert"],
    },
    save: {
      title: "Saving",
      schema: SaveModelOptions,
      docs: "models.SaveModelOptions",
      omit: { adapters: "a quantized model carries none" },
      rename: { dtype: "save-dtype" },
    },
    load: { title: "Loading", schema: LoadModelOptions, docs: "models.LoadModelOptions" },
  },
  examples: [
    ["llm quantize ./merged --calibration text.txt --output ./merged-awq", "AWQ"],
    [
      "llm quantize ./merged --calibration chats.jsonl --group-size 64 --perplexity text.txt --output ./merged-awq",
      "smaller groups; perplexity before and after",
    ],
    ["llm quantize ./merged --method rtn --output ./merged-w4", "round to nearest"],
  ],
  async run({ args, values: { own, quantize: options, save, load }, signal, terminal }) {
    const name = args[0]!;
    const rtn = options.method === "rtn";
    if (rtn && own.calibration.length > 0)
      throw new OptionsError("[llm quantize] --calibration: rtn does not use it; leave it out or choose --method awq");
    if (!rtn && own.calibration.length === 0)
      throw new OptionsError(
        "[llm quantize] expected --calibration <file> for awq (text or jsonl, about 64 k tokens), or --method rtn",
      );
    const began = performance.now();
    terminal.note(`loading ${name}`);
    const model = await openModel(name, load);
    const blockTokens = Math.min(own.perplexityTokens, model.maxTokens);
    const blocks =
      own.perplexity === undefined
        ? undefined
        : tokenBlocks(await readFile(own.perplexity, "utf8"), { tokenizer: model.tokenizer, tokens: blockTokens });
    const calibration = rtn ? undefined : await readCalibration(own.calibration, own.format, model, signal);
    signal.throwIfAborted();

    const linears = model.decoder.linears().length;
    let done = 0;
    const quantized = await quantizeModel(model, {
      ...options,
      ...(calibration ? { calibration } : {}),
      signal,
      onProgress: (at) => {
        done++;
        terminal.progress(`${at.name} (layer ${at.layer + 1} of ${at.of})`, Math.min(done, linears), linears);
        if (at.name.endsWith("down_proj")) terminal.record({ type: "progress", ...at });
      },
    });
    terminal.endProgress();
    let perplexity: Record<string, number> | undefined;
    if (blocks) {
      terminal.note("measuring perplexity before and after");
      const before = await perplexityOf(model, blocks, { signal });
      const after = await perplexityOf(quantized, blocks, { signal });
      const difference = comparePerplexity(before, after);
      perplexity = {
        before: before.perplexity,
        after: after.perplexity,
        nllDifference: difference.nll,
        nllStandardError: difference.standardError,
      };
    }
    const saved = await saveQuantized(quantized, own.output, save);
    for (const { name: linear, reason } of saved.denseInFile)
      terminal.warn(`${linear} stays dense in the folder: ${reason}`);
    const { bytesBefore, bytesAfter, calibration: used, linears: reports } = quantized.quantization;
    const elapsedMs = performance.now() - began;
    const lines = [
      `quantized model: ${own.output} (${formatDuration(elapsedMs)})`,
      `weights: ${formatBytes(bytesBefore)} → ${formatBytes(bytesAfter)}, ${reports.filter(({ stored }) => stored === "w4").length} of ${reports.length} linears in 4 bits`,
      ...(used ? [`calibration: ${used.tokens} tokens in ${used.blocks} blocks`] : []),
      ...(perplexity
        ? [
            `perplexity: ${perplexity["before"]!.toFixed(4)} → ${perplexity["after"]!.toFixed(4)} (difference in nats a token ${perplexity["nllDifference"]!.toFixed(5)} ± ${perplexity["nllStandardError"]!.toFixed(5)})`,
          ]
        : []),
    ];
    terminal.result(lines.join("\n"), {
      type: "done",
      output: own.output,
      bytesBefore,
      bytesAfter,
      elapsedMs,
      denseInFile: saved.denseInFile,
      ...(used ? { calibration: used } : {}),
      ...(perplexity ? { perplexity } : {}),
    });
  },
});
