import { mergeLora, MergeLoraOptions } from "@llm/lora";
import { LoadModelOptions, SaveModelOptions } from "@llm/models";
import * as v from "valibot";
import { defineCommand } from "../define-command.js";
import { openModel } from "../open-model.js";
import { formatDuration } from "../terminal.js";

export const MergeFlags = v.strictObject({
  /** Folder that the merged model is written to. */
  output: v.pipe(v.string(), v.nonEmpty()),
});

export const merge = defineCommand({
  name: "merge",
  description:
    "Adds a LoRA adapter (a PEFT folder) to the weights of its base and saves a whole model that needs no adapter.",
  arguments: [
    { name: "base", description: "folder or hub name of the base model", required: true },
    { name: "adapter", description: "PEFT folder", required: true },
  ],
  groups: {
    own: { title: "Options", schema: MergeFlags, docs: "cli.MergeFlags", complete: true },
    merge: {
      title: "Options",
      schema: MergeLoraOptions,
      docs: "lora.MergeLoraOptions",
      omit: { adapters: "one adapter is loaded" },
    },
    save: {
      title: "Saving",
      schema: SaveModelOptions,
      docs: "models.SaveModelOptions",
      omit: { adapters: "this command merges" },
      rename: { dtype: "save-dtype" },
    },
    load: { title: "Loading", schema: LoadModelOptions, docs: "models.LoadModelOptions" },
  },
  examples: [
    ["llm merge ./model ./adapter --output ./merged", "one folder, as vLLM and transformers load it"],
    ["llm merge ./model ./adapter --output ./merged --max-shard-size 2GB", "in files of at most 2 GB"],
    ["llm merge ./model-awq ./adapter --output ./merged --base dequantized", "of a quantized base"],
  ],
  async run({ args, values: { own, merge: options, save, load }, signal, terminal }) {
    const [base, adapter] = args as [string, string];
    const began = performance.now();
    terminal.note(`loading ${base} and ${adapter}`);
    const model = await openModel(base, load, adapter);
    signal.throwIfAborted();
    terminal.note(`writing ${own.output}`);
    // A dense base is merged one tensor at a time while it is written.
    if (options.base === "dequantized") await mergeLora(model, options).save(own.output, save);
    else await model.save(own.output, { ...save, adapters: "merge" });
    const elapsedMs = performance.now() - began;
    terminal.result(`merged model: ${own.output} (${formatDuration(elapsedMs)})`, {
      type: "done",
      output: own.output,
      base,
      adapter,
      elapsedMs,
    });
  },
});
