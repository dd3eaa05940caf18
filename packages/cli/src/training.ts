/** A training run as the command line and the config file describe it. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { OptionsError } from "@llm/core";
import { type Dataset, type DataSource, loadDataset, preview } from "@llm/data";
import { adapterParameters, applyLora, loadLora, quantizeFp8, quantizeNf4, saveLora } from "@llm/lora";
import { type CausalLM, pullDataset } from "@llm/models";
import { train, type TrainOptions } from "@llm/parallel";
import type { TrainConfig } from "./define-config.js";
import { makeStudent, openTeacher } from "./distill-settings.js";
import { openModel } from "./open-model.js";
import { formatDuration, type Terminal } from "./terminal.js";

type Sources = NonNullable<TrainConfig["data"]>;

const isPlain = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;

/** What `over` says, and where it says nothing what `base` says; objects are merged key by key, lists replaced. */
export function mergeSettings<T>(base: T, over: T): T {
  if (!isPlain(base) || !isPlain(over)) return over === undefined ? base : over;
  const merged: Record<string, unknown> = { ...base };
  for (const [key, value] of Object.entries(over)) merged[key] = mergeSettings(merged[key], value);
  return merged as T;
}

/** Files as they are; `organisation/name:file` is pulled from the hub. */
async function localData(sources: Sources, signal: AbortSignal): Promise<(string | DataSource)[]> {
  const list = Array.isArray(sources) ? sources : [sources];
  return Promise.all(
    list.map(async (source) => {
      const path = typeof source === "string" ? source : source.path;
      const remote = path === undefined || existsSync(path) ? null : /^([\w.-]+\/[\w.-]+):(.+)$/.exec(path);
      if (!remote) return source;
      const folder = await pullDataset(remote[1]!, { include: [remote[2]!], signal });
      const local = join(folder, remote[2]!);
      return typeof source === "string" ? { path: local, name: source } : { name: path!, ...source, path: local };
    }),
  );
}

/** Reads data for a model. */
export async function readData(
  sources: Sources,
  model: CausalLM,
  options: TrainConfig["dataset"],
  signal: AbortSignal,
): Promise<Dataset> {
  return loadDataset(await localData(sources, signal), {
    ...options,
    maxTokens: options?.maxTokens ?? Math.min(2048, model.maxTokens),
    tokenizer: model.tokenizer,
  });
}

interface PreparedData {
  data: Dataset;
  evaluation: Dataset | undefined;
}

async function prepareData(
  config: TrainConfig,
  model: CausalLM,
  where: string,
  signal: AbortSignal,
): Promise<PreparedData> {
  const { evaluationData, evaluationFraction } = config;
  if (evaluationData !== undefined && evaluationFraction !== undefined)
    throw new OptionsError(`[${where}] expected evaluationData or evaluationFraction, got both`);
  const data = await readData(config.data!, model, config.dataset, signal);
  if (evaluationFraction !== undefined) {
    const { train: rest, evaluation } = data.split(evaluationFraction);
    return { data: rest, evaluation };
  }
  // One file that is not trained on: mixing and shuffling mean nothing there.
  const { mix: _mix, shuffle: _shuffle, ...plain } = config.dataset ?? {};
  return {
    data,
    evaluation: evaluationData === undefined ? undefined : await readData(evaluationData, model, plain, signal),
  };
}

/** Options of train() with the command line's own defaults: a bar or JSON lines, loss curves beside the result. */
function trainOptions(
  config: TrainConfig,
  output: string,
  model: CausalLM,
  { data, evaluation }: PreparedData,
  where: string,
  signal: AbortSignal,
): TrainOptions<CausalLM> {
  const { evaluation: evaluationOptions, checkpoint, curve, ...rest } = config.train ?? {};
  if (evaluationOptions !== undefined && evaluation === undefined)
    throw new OptionsError(`[${where}] evaluation: expected data for it, evaluationData or evaluationFraction`);
  return {
    progress: "auto",
    ...(rest as Partial<TrainOptions<CausalLM>>),
    curve: { svg: join(output, "loss.svg"), jsonl: join(output, "loss.jsonl"), ...curve },
    ...(checkpoint === undefined
      ? {}
      : { checkpoint: { ...checkpoint, folder: checkpoint.folder ?? join(output, "checkpoints") } }),
    ...(evaluation === undefined
      ? {}
      : {
          evaluation: {
            ...(evaluationOptions?.batchSize === undefined && evaluationOptions?.batchTokens === undefined
              ? { batchTokens: data.maxTokens }
              : {}),
            ...evaluationOptions,
            data: evaluation,
          },
        }),
    model,
    data,
    signal,
  };
}

export interface TrainingRun {
  config: TrainConfig;
  /** Show this many samples and end. */
  preview: number | undefined;
  /** Before messages: `llm train`. */
  where: string;
  signal: AbortSignal;
  terminal: Terminal;
}

/**
 * Loads model and data, trains, and saves: a LoRA run its adapter, any other the model.
 * @throws {OptionsError} something needed is missing, or settings that do not fit together
 */
export async function runTraining({ config, preview: samples, where, signal, terminal }: TrainingRun): Promise<void> {
  const { model: name, output, lora, adapter, quantizeBase } = config;
  const isAdapter = adapter !== undefined || (lora !== undefined && lora !== false);
  const needed: ("model" | "data" | "output")[] = [
    ...(config.distill ? [] : (["model"] as const)),
    "data",
    ...(samples === undefined ? (["output"] as const) : []),
  ];
  const missing = needed.filter((key) => config[key] === undefined);
  if (missing.length > 0)
    throw new OptionsError(
      `[${where}] expected ${missing.map((key) => `--${key}`).join(", ")} (or ${missing.join(", ")} in a config file)`,
    );
  if (lora !== undefined && lora !== false && adapter !== undefined)
    throw new OptionsError(`[${where}] expected lora (a new adapter) or adapter (one to go on with), got both`);
  if (quantizeBase !== undefined && !isAdapter)
    throw new OptionsError(
      `[${where}] quantizeBase: expected lora or adapter beside it; quantized weights do not train`,
    );

  terminal.note(`loading ${[config.distill?.teacher, name].filter((part) => part !== undefined).join(" and ")}`);
  if (config.distill && config.train?.objective)
    throw new OptionsError(`[${where}] expected distill or train.objective, got both`);
  const teaching = config.distill && (await openTeacher(config.distill, config.load?.device, where));
  const precision = config.train?.precision;
  const base =
    name === undefined
      ? makeStudent(config.distill!, teaching!.teacher, where)
      : await openModel(name, { ...(precision === undefined ? {} : { dtype: precision }), ...config.load });
  const prepared = await prepareData(config, base, where, signal);
  signal.throwIfAborted();
  if (samples !== undefined) {
    terminal.print(`${preview(prepared.data, samples, { color: terminal.colors.isColorSupported })}\n`);
    return;
  }
  const frozen =
    quantizeBase === "nf4"
      ? quantizeNf4(base, { release: true })
      : quantizeBase === "fp8"
        ? quantizeFp8(base, { release: true })
        : base;
  const model =
    adapter !== undefined
      ? await loadLora(frozen, adapter, { trainable: true })
      : isAdapter
        ? applyLora(frozen, lora === true ? {} : (lora as object))
        : frozen;
  const options = trainOptions(config, output!, model, prepared, where, signal);
  if (teaching) options.objective = teaching.objective;

  const report = prepared.data.report();
  const trained = isAdapter
    ? adapterParameters(model).reduce((n, { tensor }) => n + tensor.size, 0)
    : model.decoder.trainable().reduce((n, { tensor }) => n + tensor.size, 0);
  const percent = (100 * report.trainedFraction).toFixed(1);
  terminal.note(
    `${report.documents} documents in ${report.samples} samples, ${report.tokens} tokens, ${percent} % learned; ${trained.toLocaleString("en")} parameters ${isAdapter ? "in the adapter" : "in all"}`,
  );
  if (report.rejected.length > 0)
    terminal.warn(
      `${report.rejected.length} rows were left out; the first: ${report.rejected[0]!.file} row ${report.rejected[0]!.index + 1}: ${report.rejected[0]!.reason}`,
    );
  if (!terminal.interactive)
    terminal.record({
      type: "data",
      documents: report.documents,
      samples: report.samples,
      tokens: report.tokens,
      trainedTokens: report.trainedTokens,
      rejected: report.rejected.length,
      parameters: trained,
    });

  let result: Awaited<ReturnType<typeof train>["done"]>;
  try {
    result = await train(options).done;
  } catch (error) {
    if (signal.aborted && options.checkpoint)
      terminal.warn(`stopped; the checkpoints are in ${options.checkpoint.folder}, go on with --resume`);
    throw error;
  }
  if (isAdapter) await saveLora(model, output!);
  else await model.save(output!, config.save ?? {});
  const kind = isAdapter ? "adapter" : "model";
  const loss = Number.isFinite(result.loss) ? result.loss.toFixed(4) : "–";
  const tail = result.evaluation ? `, evaluation loss ${result.evaluation.loss.toFixed(4)}` : "";
  terminal.result(
    `${kind}: ${output!} (${result.steps} steps in ${formatDuration(result.elapsedMs)}, loss ${loss}${tail})\nloss curve: ${options.curve?.svg ?? ""}`,
    {
      type: "done",
      kind,
      output,
      ...result,
    },
  );
}
