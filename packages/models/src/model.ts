/** A causal language model: a decoder with its tokenizer, as a Hugging Face folder holds them. */
import { existsSync, readFileSync } from "node:fs";
import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  currentDevice,
  type Device,
  type DType,
  FormatError,
  IoError,
  type Linear,
  noGrad,
  NumericError,
  onDevice,
  parseOptions,
  requireDevice,
  scope,
  type Tensor,
  writeSafetensors,
} from "@llm/core";
import * as v from "valibot";
import { findModelDefinition } from "./arch/index.js";
import type { DecoderSpec, ModelDefinition } from "./arch/spec.js";
import { type AwqConfig, parseAwqConfig } from "./awq-format.js";
import { encodeChat } from "./chat-prompt.js";
import { type DenseInFile, planCheckpoint } from "./checkpoint.js";
import { createInputs, type Decoder, type DecoderInputs } from "./decoder.js";
import { generateTokens } from "./generate.js";
import { resolveModelFolder } from "./hub/pull.js";
import { scoreContinuations } from "./score.js";
import { loadTokenizer } from "./tokenizer/index.js";
import type {
  GenerateEvent,
  GenerateOptions,
  LanguageModel,
  Prompt,
  Score,
  TokenBatch,
  TokenIds,
  Tokenizer,
} from "./types.js";
import { randomDecoder, readDecoder } from "./weights.js";

const floats = v.picklist(["f32", "bf16", "f16"]);

export const LoadModelOptions = v.strictObject({
  /** Cast weights to this; "auto" keeps the file's dtype. @default "auto" */
  dtype: v.optional(v.union([v.literal("auto"), floats]), "auto"),
  /** Where the model runs; "auto" takes a GPU when there is one. @default "auto" */
  device: v.optional(v.picklist(["auto", "cpu", "cuda"]), "auto"),
  /** Hub revision: branch, tag or commit. @default "main" */
  revision: v.optional(v.string()),
  /** Hub to pull from when the name is not a folder. @default "huggingface" */
  source: v.optional(v.picklist(["huggingface", "modelscope"])),
});
export type LoadModelOptions = v.InferInput<typeof LoadModelOptions>;

export const SaveModelOptions = v.strictObject({
  /** Dtype of dense weights; default as they are. */
  dtype: v.optional(floats),
  /** What to do with active adapters: refuse, or write the merged weights, one tensor at a time. @default "refuse" */
  adapters: v.optional(v.picklist(["refuse", "merge"]), "refuse"),
  /** Largest weight file, as bytes or text ("2GB"). @default "5GB" */
  maxShardSize: v.optional(v.union([v.number(), v.string()]), "5GB"),
});
export type SaveModelOptions = v.InferInput<typeof SaveModelOptions>;

/** What `save` wrote. */
export interface SavedModel {
  /** Weight files in the folder, without the index. */
  files: string[];
  /** Bytes of all tensors. */
  totalBytes: number;
  /** Linears that are quantized in memory and dense in the folder, with the reason. */
  denseInFile: DenseInFile[];
}

/** Fields of a new {@link CausalLM}. */
export interface CausalLMInit {
  definition: ModelDefinition;
  config: Record<string, unknown>;
  decoder: Decoder;
  tokenizer: Tokenizer;
  /** Where the model was loaded from. */
  path?: string;
  eosTokenIds?: readonly number[];
  generationConfig?: Record<string, unknown>;
}

/**
 * A decoder-only language model. Freed by dispose(), or when collected.
 * Models made from it by applyLora, quantize … share its weights.
 */
export class CausalLM implements LanguageModel {
  readonly definition: ModelDefinition;
  /** config.json as loaded. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly decoder: Decoder;
  readonly tokenizer: Tokenizer;
  readonly path: string | undefined;
  /** Ids that end a generation. */
  readonly eosTokenIds: readonly number[];
  /** generation_config.json, if any. */
  readonly generationConfig: Readonly<Record<string, unknown>>;

  constructor(init: CausalLMInit) {
    this.definition = init.definition;
    this.config = init.config;
    this.decoder = init.decoder;
    this.tokenizer = init.tokenizer;
    this.path = init.path;
    this.generationConfig = init.generationConfig ?? {};
    this.eosTokenIds = init.eosTokenIds ?? endTokens(init.config, this.generationConfig, init.tokenizer);
  }

  get spec(): DecoderSpec {
    return this.decoder.spec;
  }

  get maxTokens(): number {
    return this.spec.maxPositions;
  }

  /** Dtype of activations: that of the embedding. */
  get dtype(): DType {
    return this.decoder.embed.weight.dtype;
  }

  /** Where the model runs. */
  get device(): Device {
    return this.decoder.device;
  }

  /** A model with another decoder and the same everything else; weights are shared. */
  withDecoder(decoder: Decoder, config: Readonly<Record<string, unknown>> = this.config): CausalLM {
    return new CausalLM({
      definition: this.definition,
      config: { ...config },
      decoder,
      tokenizer: this.tokenizer,
      eosTokenIds: this.eosTokenIds,
      generationConfig: { ...this.generationConfig },
      ...(this.path ? { path: this.path } : {}),
    });
  }

  /** A model with each linear replaced by `change(linear)`; the rest is shared. */
  mapLinears(change: (linear: Linear) => Linear): CausalLM {
    return this.withDecoder(this.decoder.mapLinears(change));
  }

  /** Final hidden states [T, C] of a packed batch; under the tape when gradients are on. */
  hidden(
    batch: Pick<TokenBatch, "ids_T" | "positions_T" | "cuSeqlens_B1">,
    options: { checkpointing?: boolean } = {},
  ): Tensor {
    return onDevice(this.device, () =>
      this.decoder.forward(createInputs(batch.ids_T, batch.positions_T, batch.cuSeqlens_B1), options),
    );
  }

  /** Logits f32 [T, V] of one sequence of ids. For tests and small models: holds all logits at once. */
  logits(ids: TokenIds): Tensor {
    return onDevice(this.device, () =>
      noGrad(() => scope(() => this.decoder.logits(this.decoder.forward(sequenceInputs(ids))))),
    );
  }

  generate(prompts: Prompt[], options: GenerateOptions = {}): AsyncIterable<GenerateEvent> {
    return generateTokens(this, prompts, options);
  }

  score(prefix: TokenIds, continuations: TokenIds[], options: { signal?: AbortSignal } = {}): Promise<Score[]> {
    return scoreContinuations(this, prefix, continuations, options);
  }

  /**
   * Ids of a prompt: text as is with the model's begin token, conversations through the chat template.
   * @throws {NumericError} an id that the embedding has no row for
   */
  encodePrompt(prompt: Prompt): TokenIds {
    const ids = encodePrompt(this.tokenizer, prompt);
    const { vocabSize } = this.spec;
    const outside = ids.findIndex((id) => id < 0 || id >= vocabSize);
    if (outside >= 0)
      throw new NumericError(`[generate] prompt token ${outside} must be in [0, ${vocabSize}), got ${ids[outside]}`, {
        index: outside,
        id: ids[outside],
      });
    return ids;
  }

  /**
   * Writes a folder that transformers, vLLM and LMDeploy load: config.json, safetensors (sharded), tokenizer, generation_config.json.
   * Weights are written last under temporary names. A model with W4 linears becomes an AutoAWQ "gemm" folder in f16; linears that its
   * layout cannot hold are written dense, listed in `modules_to_not_convert` and returned.
   * @throws {UnsupportedError} adapters that are not merged, or weights that no checkpoint format holds
   * @throws {OptionsError} another dtype than f16 for a quantized model
   */
  async save(folder: string, options: SaveModelOptions = {}): Promise<SavedModel> {
    const { dtype, maxShardSize, adapters } = parseOptions(SaveModelOptions, options, "saveModel");
    const plan = planCheckpoint(this.decoder, this.definition, { dtype, merge: adapters === "merge" });
    await mkdir(folder, { recursive: true });
    const names: Record<string, string> = { f32: "float32", bf16: "bfloat16", f16: "float16" };
    const { dtype: _dtype, quantization_config: _quantization, ...plain } = this.config;
    const config = {
      ...plain,
      torch_dtype: names[plan.dtype],
      ...(plan.quantization ? { quantization_config: plan.quantization } : {}),
    };
    await this.tokenizer.save(folder);
    await writeJson(join(folder, "config.json"), config);
    if (Object.keys(this.generationConfig).length > 0)
      await writeJson(join(folder, "generation_config.json"), this.generationConfig);
    const { files, totalBytes } = await writeSafetensors(folder, plan.sources, { maxShardBytes: maxShardSize });
    return { files, totalBytes, denseInFile: plan.denseInFile };
  }

  /** Frees the weights. Models that share them (adapters, merged copies) can no longer be used. */
  dispose(): void {
    this.decoder.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Layout of a single sequence. */
export function sequenceInputs(ids: TokenIds): DecoderInputs {
  return createInputs(
    ids,
    Int32Array.from(ids, (_, i) => i),
    Int32Array.of(0, ids.length),
  );
}

/**
 * Ids of a prompt: ids as they are, text with the begin token, conversations through the chat template with a generation prompt.
 * @throws {FormatError} an empty prompt  @throws {UnsupportedError} a conversation, and no template
 */
export function encodePrompt(tokenizer: Tokenizer, prompt: Prompt): TokenIds {
  let ids: TokenIds;
  if (prompt instanceof Int32Array) ids = prompt;
  else if (typeof prompt === "string") ids = tokenizer.encode(prompt);
  else
    ids = encodeChat(tokenizer, prompt.messages, {
      ...(prompt.tools ? { tools: prompt.tools } : {}),
      ...(prompt.template ? { template: prompt.template } : {}),
    });
  if (ids.length === 0) throw new FormatError("[generate] the prompt is empty: it needs at least one token");
  return ids;
}

/** End tokens: generation_config.json's, else config.json's, plus the tokenizer's. */
function endTokens(
  config: Record<string, unknown>,
  generation: Readonly<Record<string, unknown>>,
  tokenizer: Tokenizer,
): number[] {
  const list = [generation["eos_token_id"] ?? config["eos_token_id"], tokenizer.eosTokenId]
    .flat()
    .filter((id): id is number => typeof id === "number");
  return [...new Set(list)];
}

function readJson(path: string): Record<string, unknown> {
  try {
    return JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  } catch (error) {
    if (error instanceof SyntaxError)
      throw new FormatError(`[loadModel] ${path} is not valid JSON: ${error.message}`, { file: path }, error);
    throw new IoError(`[loadModel] cannot read ${path}: ${(error as Error).message}`, { file: path }, error);
  }
}

async function writeJson(path: string, value: unknown): Promise<void> {
  await writeFile(`${path}.tmp`, `${JSON.stringify(value, null, 2)}\n`);
  await rename(`${path}.tmp`, path);
}

/** What device a model goes to. @throws {DeviceError} CUDA was asked for and cannot be used */
const chooseDevice = (device: "auto" | Device): Device => (device === "auto" ? currentDevice() : requireDevice(device));

/** The spec of a parsed config.json. */
export function modelSpec(config: Record<string, unknown>): { definition: ModelDefinition; spec: DecoderSpec } {
  const definition = findModelDefinition(config["model_type"]);
  return { definition, spec: definition.parse(config) };
}

/**
 * Loads a Hugging Face folder (config.json, safetensors, tokenizer), or pulls `org/name` from the hub first.
 * Dense weights and AutoAWQ "gemm" folders.
 * @throws {FormatError | ShapeError | UnsupportedError} naming the key or tensor at fault
 * @throws {DeviceError} device "cuda" that cannot be used
 */
export async function loadModel(nameOrFolder: string, options: LoadModelOptions = {}): Promise<CausalLM> {
  const o = parseOptions(LoadModelOptions, options, "loadModel");
  const device = chooseDevice(o.device);
  const folder = await resolveModelFolder(nameOrFolder, {
    ...(o.revision ? { revision: o.revision } : {}),
    ...(o.source ? { source: o.source } : {}),
  });
  const config = readJson(join(folder, "config.json"));
  const { definition, spec } = modelSpec(config);
  let awq: AwqConfig | undefined;
  if (config["quantization_config"]) awq = parseAwqConfig(config);
  const tokenizer = await loadTokenizer(folder);
  const generationPath = join(folder, "generation_config.json");
  const generationConfig = existsSync(generationPath) ? readJson(generationPath) : {};
  const decoder = readDecoder(folder, definition, spec, {
    dtype: o.dtype === "auto" ? undefined : o.dtype,
    awq,
    device,
  });
  return new CausalLM({ definition, config, decoder, tokenizer, path: folder, generationConfig });
}

export const CreateModelOptions = v.strictObject({
  /** Same seed and config: same weights. @default 0 */
  seed: v.optional(v.number(), 0),
  /** @default "f32" */
  dtype: v.optional(floats, "f32"),
  /** Standard deviation of the weights; default the config's initializer_range, else 0.02. */
  initStd: v.optional(v.pipe(v.number(), v.minValue(0))),
  /** @default "auto" */
  device: v.optional(v.picklist(["auto", "cpu", "cuda"]), "auto"),
});
export type CreateModelOptions = v.InferInput<typeof CreateModelOptions>;

/** A model of random weights from a config.json object. */
export function createModel(
  config: Record<string, unknown>,
  tokenizer: Tokenizer,
  options: CreateModelOptions = {},
): CausalLM {
  const o = parseOptions(CreateModelOptions, options, "createModel");
  const device = chooseDevice(o.device);
  const { definition, spec } = modelSpec(config);
  const std = o.initStd ?? (typeof config["initializer_range"] === "number" ? config["initializer_range"] : 0.02);
  const decoder = onDevice(device, () => randomDecoder(definition, spec, { seed: o.seed, dtype: o.dtype, std }));
  return new CausalLM({
    definition,
    config: { architectures: [definition.architecture], ...config },
    decoder,
    tokenizer,
  });
}
