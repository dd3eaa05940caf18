import { OptionsError } from "@llm/core";
import { kvBlockBytes, type KvDtype } from "@llm/kvcache";
import { loadLora } from "@llm/lora";
import { LoadModelOptions } from "@llm/models";
import { createEngine, createServer, EngineOptions, type LocalEngine, serverSchema } from "@llm/serve";
import * as v from "valibot";
import { defineCommand } from "../define-command.js";
import { nameAndPath, openModel } from "../open-model.js";
import { formatBytes } from "../terminal.js";

export const ServeFlags = v.strictObject({
  /** PEFT folder. Alone: the model is served with it. As name=folder, any number of times: served under that name beside the model, on the same weights. */
  adapter: v.optional(v.array(v.pipe(v.string(), v.nonEmpty())), []),
  /** At SIGINT or SIGTERM: milliseconds that answers in progress may still take. @default 30000 */
  drainTimeoutMs: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 30_000),
});

type EngineInput = v.InferInput<typeof EngineOptions>;

/** Bytes of an engine's KV cache. */
function cacheBytes(engine: LocalEngine, options: EngineInput): number {
  const { layers, kvHeads, headDim } = engine.model.spec;
  const dtype = options.kvCache?.dtype ?? "auto";
  const block = kvBlockBytes({
    layers,
    kvHeads,
    headDim,
    blockSize: options.kvCache?.blockSize ?? 16,
    dtype: dtype === "auto" ? (engine.model.dtype as KvDtype) : dtype,
  });
  return block * engine.stats().kvBlocksTotal;
}

/** Engines by the name they are served under. */
async function openEngines(
  models: readonly string[],
  adapters: readonly string[],
  load: LoadModelOptions,
  options: EngineInput,
  name: string | undefined,
): Promise<Record<string, LocalEngine>> {
  const engines: Record<string, LocalEngine> = {};
  const add = async (as: string, model: Parameters<typeof createEngine>[0]): Promise<void> => {
    if (as in engines)
      throw new OptionsError(`[llm serve] two models are named "${as}"; name them: a=./one b=./two`, { name: as });
    engines[as] = await createEngine(model, options);
  };
  if (models.length > 1 && adapters.length > 0)
    throw new OptionsError("[llm serve] --adapter: expected one model to attach it to, got several");
  if (models.length > 1 && name !== undefined)
    throw new OptionsError("[llm serve] --model-name names a single model; name several as name=folder");
  for (const text of models) {
    const { name: own, path } = nameAndPath(text);
    const plain = adapters.filter((adapter) => !/^[\w.:-]+=/.test(adapter));
    if (plain.length > 1)
      throw new OptionsError("[llm serve] --adapter: only one can be the model's own; name the others: name=folder");
    const base = await openModel(path, load);
    await add(name ?? own, plain[0] === undefined ? base : await loadLora(base, plain[0]));
    for (const adapter of adapters.filter((entry) => !plain.includes(entry))) {
      const named = nameAndPath(adapter);
      await add(named.name, await loadLora(base, named.path));
    }
  }
  return engines;
}

export const serve = defineCommand({
  name: "serve",
  description:
    "Serves models over OpenAI's HTTP API (chat completions, completions, models), with continuous batching and a paged cache.\nSIGINT and SIGTERM stop it gracefully: no new requests, answers in progress end, exit code 0.",
  arguments: [
    {
      name: "model",
      description: "folder, hub name or PEFT folder; several as name=folder",
      required: true,
      variadic: true,
    },
  ],
  groups: {
    own: { title: "Options", schema: ServeFlags, docs: "cli.ServeFlags", complete: true },
    server: {
      title: "Server",
      schema: serverSchema,
      docs: "serve.serverSchema",
      omit: { engine: "made from the models", onError: "a function" },
      rename: { maxQueue: "max-requests" },
      commas: ["apiKey"],
    },
    engine: { title: "Engine", schema: EngineOptions, docs: "serve.EngineOptions" },
    load: { title: "Loading", schema: LoadModelOptions, docs: "models.LoadModelOptions" },
  },
  examples: [
    ["llm serve ./model", "on http://127.0.0.1:23333"],
    ["llm serve small=./awq large=./model --port 8000 --kv-cache-dtype int8", "two models, an int8 KV cache"],
    ["llm serve ./model --adapter sums=./adapter --adapter chat=./other", "a base and two adapters on it"],
  ],
  async run({ args, values: { own, server: options, engine: engineOptions, load }, signal, terminal }) {
    terminal.note(`loading ${args.join(", ")}`);
    const { modelName, ...serverOptions } = options;
    const engines = await openEngines(args, own.adapter, load, engineOptions, modelName);
    signal.throwIfAborted();
    try {
      const key = options.apiKey ?? process.env["LLM_API_KEY"];
      const server = await createServer({ ...serverOptions, ...(key ? { apiKey: key } : {}), engine: engines });
      const names = Object.keys(engines);
      const caches = Object.entries(engines).map(
        ([name, engine]) =>
          `${name}: KV cache ${formatBytes(cacheBytes(engine, engineOptions))} in ${engine.stats().kvBlocksTotal} blocks, ${engine.maxTokens} tokens a sequence`,
      );
      terminal.result(
        [
          `serving ${names.join(", ")} at ${terminal.colors.bold(server.url)}`,
          ...caches.map((line) => terminal.colors.dim(line)),
          terminal.colors.dim("Ctrl-C stops"),
        ].join("\n"),
        {
          type: "listening",
          url: server.url,
          models: names,
        },
      );
      if (!signal.aborted)
        await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
      terminal.note("stopping: waiting for answers in progress");
      await server.close({ timeoutMs: own.drainTimeoutMs });
      terminal.record({ type: "stopped" });
    } finally {
      for (const engine of Object.values(engines)) await engine.dispose();
    }
    return 0;
  },
});
