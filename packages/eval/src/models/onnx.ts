import { readFile, stat } from "node:fs/promises";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { dirname, join } from "node:path";
import { DisposedError, FormatError, IoError, OptionsError, parseOptions, UnsupportedError } from "@llm/core";
import type { GenerateEvent, GenerateOptions, Prompt, Score, TokenIds, Tokenizer } from "@llm/models";
import * as v from "valibot";
import type { EvaluatedModel } from "../task.js";
import { OnnxDecoder, type OnnxLogits, type OnnxState } from "./onnx-session.js";
import { makeTokenChooser } from "./token-chooser.js";

export const onnxModelOptionsSchema = v.strictObject({
  /** The .onnx file, or its folder (genai_config.json names the file; else model.onnx, decoder.onnx or onnx/model.onnx). */
  path: v.pipe(v.string(), v.minLength(1)),
  tokenizer: v.custom<Tokenizer>(
    (value) => typeof (value as Tokenizer | null)?.encode === "function",
    "expected a Tokenizer",
  ),
  /** Context in tokens. Default: genai_config.json or config.json beside the file. */
  maxTokens: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  /** Ids that end an answer. Default: the tokenizer's end token and those of genai_config.json or config.json. */
  eosTokenIds: v.optional(v.array(v.pipe(v.number(), v.integer(), v.minValue(0)))),
  /** In order of preference, as onnxruntime names them. @default ["cpu"] */
  executionProviders: v.optional(v.pipe(v.array(v.string()), v.minLength(1)), ["cpu"]),
  /** Threads of one operator. Default: onnxruntime's own choice. */
  threads: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
});

export type OnnxModelOptions = v.InferInput<typeof onnxModelOptionsSchema>;

/** An ONNX decoder as a LanguageModel; `dispose()` frees the session. */
export interface OnnxModel extends EvaluatedModel {
  dispose(): Promise<void>;
}

/**
 * A decoder in ONNX, run by onnxruntime-node (an optional package, imported here and nowhere else). Graphs with or
 * without a cache, f32 or f16, as `OnnxDecoder` describes. Sequences are run one at a time.
 * @throws {UnsupportedError} onnxruntime-node is absent, or the graph is not such a decoder
 * @throws {IoError} the file cannot be read
 * @throws {OptionsError} the context is not known
 */
export async function onnxModel(options: OnnxModelOptions): Promise<OnnxModel> {
  const parsed = parseOptions(onnxModelOptionsSchema, options, "onnxModel");
  const found = await locate(parsed.path);
  const maxTokens = parsed.maxTokens ?? found.maxTokens;
  if (maxTokens === undefined)
    throw new OptionsError(
      `[onnxModel] maxTokens: expected the model's context; no genai_config.json or config.json names it`,
      {
        path: found.file,
      },
    );
  const sessionOptions: Record<string, unknown> = { executionProviders: parsed.executionProviders };
  if (parsed.threads !== undefined) sessionOptions["intraOpNumThreads"] = parsed.threads;
  const decoder = await OnnxDecoder.open(found.file, sessionOptions);
  const ends = parsed.eosTokenIds ?? [
    ...found.eosTokenIds,
    ...(parsed.tokenizer.eosTokenId === undefined ? [] : [parsed.tokenizer.eosTokenId]),
  ];
  return new OnnxLanguageModel(decoder, parsed.tokenizer, maxTokens, new Set(ends), await hashFile(found.file));
}

class OnnxLanguageModel implements OnnxModel {
  readonly tokenizer: Tokenizer;
  readonly maxTokens: number;
  readonly fingerprint: string;
  private readonly decoder: OnnxDecoder;
  private readonly ends: ReadonlySet<number>;
  private disposed = false;

  constructor(
    decoder: OnnxDecoder,
    tokenizer: Tokenizer,
    maxTokens: number,
    ends: ReadonlySet<number>,
    fingerprint: string,
  ) {
    this.decoder = decoder;
    this.tokenizer = tokenizer;
    this.maxTokens = maxTokens;
    this.ends = ends;
    this.fingerprint = fingerprint;
  }

  async dispose(): Promise<void> {
    if (this.disposed) return;
    this.disposed = true;
    await this.decoder.release();
  }

  private checkAlive(): void {
    if (this.disposed) throw new DisposedError("[onnxModel] the model was disposed");
  }

  async *generate(prompts: Prompt[], options: GenerateOptions = {}): AsyncIterable<GenerateEvent> {
    this.checkAlive();
    for (const [index, prompt] of prompts.entries()) yield* this.generateOne(this.encode(prompt), index, options);
  }

  private encode(prompt: Prompt): TokenIds {
    if (typeof prompt === "string") return this.tokenizer.encode(prompt);
    if (!("messages" in prompt)) return prompt;
    const { messages, tools, template } = prompt;
    const text = this.tokenizer.applyChatTemplate(messages, {
      addGenerationPrompt: true,
      ...(tools ? { tools } : {}),
      ...(template === undefined ? {} : { template }),
    });
    return this.tokenizer.encode(text, { addSpecialTokens: false });
  }

  private async *generateOne(
    promptIds: TokenIds,
    index: number,
    options: GenerateOptions,
  ): AsyncGenerator<GenerateEvent> {
    if (promptIds.length < 1 || promptIds.length >= this.maxTokens)
      throw new UnsupportedError(
        `[onnxModel] expected a prompt of 1 to ${this.maxTokens - 1} tokens, got ${promptIds.length}`,
      );
    const limit = Math.min(options.maxTokens ?? 256, this.maxTokens - promptIds.length);
    const choose = makeTokenChooser(options, promptIds, index);
    const stream = this.tokenizer.decodeStream({ skipSpecialTokens: true });
    const stops = (options.stop ?? []).filter((text) => text !== "");
    const holdBack = Math.max(0, ...stops.map((text) => text.length)) - 1;
    const tokenIds: number[] = [];
    let unsent: number[] = [];
    let text = "";
    let sent = 0;
    let reason: "stop" | "length" | "abort" = "length";
    let cut = false;
    let input: ArrayLike<number> = promptIds;
    let state = this.decoder.initial;
    while (tokenIds.length < limit) {
      if (options.signal?.aborted) {
        reason = "abort";
        break;
      }
      const step = await this.decoder.forward(state, input);
      state = step.state;
      const id = choose(step.logits.row(step.logits.rows - 1), tokenIds);
      if ((!options.ignoreEos && this.ends.has(id)) || options.stopTokenIds?.includes(id)) {
        reason = "stop";
        break;
      }
      tokenIds.push(id);
      unsent.push(id);
      input = [id];
      text += stream.push(id);
      const stopAt = firstStop(text, stops);
      if (stopAt >= 0) {
        text = text.slice(0, stopAt);
        reason = "stop";
        cut = true;
        break;
      }
      const until = Math.max(sent, text.length - Math.max(0, holdBack));
      if (until > sent) {
        yield { type: "text-delta", index, text: text.slice(sent, until), tokenIds: unsent };
        sent = until;
        unsent = [];
      }
    }
    if (!cut) text += stream.end();
    if (text.length > sent || unsent.length > 0)
      yield { type: "text-delta", index, text: text.slice(sent), tokenIds: unsent };
    yield {
      type: "finish",
      index,
      reason,
      text,
      tokenIds,
      usage: { promptTokens: promptIds.length, completionTokens: tokenIds.length },
    };
  }

  async score(prefix: TokenIds, continuations: TokenIds[], options: { signal?: AbortSignal } = {}): Promise<Score[]> {
    this.checkAlive();
    if (prefix.length < 1) throw new OptionsError("[onnxModel] score: expected a prefix of at least one token");
    for (const continuation of continuations)
      if (prefix.length + continuation.length > this.maxTokens)
        throw new UnsupportedError(
          `[onnxModel] score: expected at most ${this.maxTokens} tokens, got ${prefix.length + continuation.length}`,
        );
    options.signal?.throwIfAborted();
    const start = await this.decoder.forward(this.decoder.initial, prefix);
    const scores: Score[] = [];
    for (const continuation of continuations) {
      options.signal?.throwIfAborted();
      scores.push(await this.scoreAfter(start, continuation));
    }
    return scores;
  }

  private async scoreAfter(start: { logits: OnnxLogits; state: OnnxState }, continuation: TokenIds): Promise<Score> {
    const tokenLogprobs = new Float64Array(continuation.length);
    let greedy = true;
    let at = 0;
    const take = (row: Float32Array): void => {
      const { logprob, likeliest } = tokenLogprob(row, continuation[at]!);
      tokenLogprobs[at++] = logprob;
      greedy &&= likeliest;
    };
    if (continuation.length > 0) take(start.logits.row(start.logits.rows - 1));
    let { state } = start;
    while (at < continuation.length) {
      // All but the last token are input; a graph that keeps only the last row of logits is fed one token at a time.
      const input = continuation.slice(at - 1, continuation.length - 1);
      const step = await this.decoder.forward(state, input);
      if (step.logits.rows === input.length) {
        for (let i = 0; i < input.length; i++) take(step.logits.row(i));
      } else {
        const single = await this.decoder.forward(state, input.slice(0, 1));
        state = single.state;
        take(single.logits.row(single.logits.rows - 1));
      }
    }
    return { logprob: tokenLogprobs.reduce((sum, value) => sum + value, 0), greedy, tokenLogprobs };
  }
}

/** log softmax(row)[id] in f64, and whether no other id is likelier (the first on ties). */
function tokenLogprob(row: Float32Array, id: number): { logprob: number; likeliest: boolean } {
  if (id < 0 || id >= row.length)
    throw new OptionsError(`[onnxModel] expected ids below ${row.length}, got ${id}`, { id });
  let top = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[top]!) top = i;
  let sum = 0;
  for (const value of row) sum += Math.exp(value - row[top]!);
  return { logprob: row[id]! - row[top]! - Math.log(sum), likeliest: top === id };
}

function firstStop(text: string, stops: readonly string[]): number {
  const places = stops.map((stop) => text.indexOf(stop)).filter((place) => place >= 0);
  return places.length === 0 ? -1 : Math.min(...places);
}

async function hashFile(file: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

interface Located {
  file: string;
  maxTokens: number | undefined;
  eosTokenIds: number[];
}

async function readJson(file: string): Promise<Record<string, unknown> | undefined> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new IoError(`[onnxModel] ${file}: ${(error as Error).message}`, { file }, error);
  }
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch (error) {
    throw new FormatError(`[onnxModel] ${file}: expected JSON: ${(error as Error).message}`, { file }, error);
  }
}

async function locate(path: string): Promise<Located> {
  const information = await stat(path).catch((error: Error) => {
    throw new IoError(`[onnxModel] path: ${error.message}`, { path }, error);
  });
  const folder = information.isDirectory() ? path : dirname(path);
  const genai = (await readJson(join(folder, "genai_config.json")))?.["model"] as
    | { context_length?: number; eos_token_id?: number | number[]; decoder?: { filename?: string } }
    | undefined;
  const config =
    genai ?? ((await readJson(join(folder, "config.json"))) as { eos_token_id?: number | number[] } | undefined);
  const end = config?.eos_token_id;
  const maxTokens =
    genai?.context_length ?? (config as { max_position_embeddings?: number } | undefined)?.max_position_embeddings;
  const eosTokenIds = end === undefined || end === null ? [] : Array.isArray(end) ? end : [end];
  if (!information.isDirectory()) return { file: path, maxTokens, eosTokenIds };
  const candidates = [
    ...(genai?.decoder?.filename ? [genai.decoder.filename] : []),
    "model.onnx",
    "decoder.onnx",
    join("onnx", "model.onnx"),
  ];
  for (const candidate of candidates) {
    const file = join(folder, candidate);
    const exists = await stat(file).then(
      () => true,
      () => false,
    );
    if (exists) return { file, maxTokens, eosTokenIds };
  }
  throw new IoError(`[onnxModel] ${path}: expected one of ${candidates.join(", ")}`, { path });
}
