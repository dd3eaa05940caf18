/** The reference decode loop: what served text must equal. B running sequences, V vocabulary. */
import { native, noGrad, onDevice, OptionsError, scope, type Tensor, tensor } from "@llm/core";
import { ContiguousCache } from "./attention-cache.js";
import { createInputs } from "./decoder.js";
import type { CausalLM } from "./model.js";
import {
  parseGenerateOptions,
  type ResolvedGenerateOptions,
  samplingParameters,
  seedWords,
} from "./generate-options.js";
import { StopMatcher } from "./stop.js";
import type { GenerateEvent, GenerateOptions, Prompt, TokenLogprob } from "./types.js";

/** One prompt on its way. */
export class Generation {
  readonly index: number;
  readonly promptIds: Int32Array;
  readonly outputIds: number[] = [];
  text = "";
  reason: "stop" | "length" | "abort" | undefined;
  private readonly options: ResolvedGenerateOptions;
  private readonly eos: ReadonlySet<number>;
  private readonly decode: { push(id: number): string; end(): string };
  private readonly stop: StopMatcher | undefined;
  private readonly limit: number;
  /** Tokens whose text is held back by the stop matcher or an unfinished character. */
  private heldIds: number[] = [];
  private heldLogprobs: TokenLogprob[] = [];

  constructor(
    model: Pick<CausalLM, "tokenizer" | "eosTokenIds" | "maxTokens">,
    index: number,
    promptIds: Int32Array,
    options: ResolvedGenerateOptions,
  ) {
    this.index = index;
    this.promptIds = promptIds;
    this.options = options;
    this.eos = new Set([...(options.ignoreEos ? [] : model.eosTokenIds), ...options.stopTokenIds]);
    this.decode = model.tokenizer.decodeStream({ skipSpecialTokens: true });
    // The output continues the prompt's text: a leading space of its first token belongs to it.
    const last = promptIds[promptIds.length - 1];
    if (last !== undefined) this.decode.push(last);
    this.stop = options.stop.length > 0 ? new StopMatcher(options.stop) : undefined;
    this.limit = Math.min(options.maxTokens, model.maxTokens - promptIds.length);
    if (this.limit <= 0) this.reason = "length";
  }

  get finished(): boolean {
    return this.reason !== undefined;
  }

  /** Tokens in the cache once the newest one is computed. */
  get length(): number {
    return this.promptIds.length + this.outputIds.length;
  }

  /** Takes a sampled token; returns the event that it makes visible, if any. */
  push(id: number, logprob?: TokenLogprob): GenerateEvent | undefined {
    const ended = this.eos.has(id);
    let text = "";
    if (!ended) {
      this.outputIds.push(id);
      this.heldIds.push(id);
      if (logprob) this.heldLogprobs.push(logprob);
      const piece = this.decode.push(id);
      text = this.stop ? this.stop.push(piece).text : piece;
      if (this.stop?.stopped) this.reason = "stop";
      else if (this.outputIds.length >= this.limit) this.reason = "length";
    } else this.reason = "stop";
    if (this.finished && !this.stop?.stopped) {
      const rest = this.decode.end();
      text += this.stop ? this.stop.push(rest).text + this.stop.end() : rest;
    }
    return this.emit(text);
  }

  private emit(text: string): GenerateEvent | undefined {
    if (text === "" && !(this.finished && this.heldIds.length > 0)) return undefined;
    this.text += text;
    const event: GenerateEvent = { type: "text-delta", index: this.index, text, tokenIds: this.heldIds };
    if (this.options.logprobs !== undefined) event.logprobs = this.heldLogprobs;
    this.heldIds = [];
    this.heldLogprobs = [];
    return event;
  }

  finish(): GenerateEvent {
    return {
      type: "finish",
      index: this.index,
      reason: this.reason ?? "abort",
      text: this.text,
      tokenIds: this.outputIds,
      usage: { promptTokens: this.promptIds.length, completionTokens: this.outputIds.length },
    };
  }
}

/**
 * @see LanguageModel.generate
 * @throws {OptionsError} a prompt that leaves no room for a token (`data.reason` = "context_length_exceeded")
 */
export async function* generateTokens(
  model: CausalLM,
  prompts: Prompt[],
  options: GenerateOptions,
): AsyncGenerator<GenerateEvent> {
  const o = parseGenerateOptions(options, "generate");
  const all = prompts.map((p, i) => new Generation(model, i, model.encodePrompt(p), o));
  for (const { index, promptIds } of all) {
    if (promptIds.length + Math.min(o.maxTokens, 1) <= model.maxTokens) continue;
    throw new OptionsError(
      `[generate] expected at most ${model.maxTokens} tokens of prompt and output, prompt ${index} has ${promptIds.length}`,
      {
        reason: "context_length_exceeded",
        promptTokens: promptIds.length,
        maxTokens: model.maxTokens,
      },
    );
  }
  for (const g of all) if (g.finished) yield g.finish();
  let running = all.filter((g) => !g.finished);
  if (running.length === 0) return;
  const { decoder } = model;
  const capacity = Math.max(...running.map((g) => Math.min(model.maxTokens, g.promptIds.length + o.maxTokens)));
  const rowOf = new Map(running.map((g, row) => [g, row]));
  const cache = new ContiguousCache(decoder.spec, running.length, capacity, model.dtype, model.device);
  try {
    for (let first = true; running.length > 0; first = false) {
      if (o.signal?.aborted) {
        for (const g of running) {
          g.reason = "abort";
          yield g.finish();
        }
        return;
      }
      const news = running.map((g) => (first ? g.promptIds : Int32Array.of(g.outputIds[g.outputIds.length - 1]!)));
      const before = running.map((g) => (first ? 0 : g.length - 1));
      const compute = (): ReturnType<typeof sampleStep> =>
        scope(() => {
          cache.plan(
            running.map((g) => rowOf.get(g)!),
            news.map((n) => n.length),
            before,
          );
          const cu = [0];
          const ids: number[] = [];
          const positions: number[] = [];
          news.forEach((n, i) => {
            n.forEach((id, t) => {
              ids.push(id);
              positions.push(before[i]! + t);
            });
            cu.push(ids.length);
          });
          const hidden = decoder.forward(
            createInputs(Int32Array.from(ids), Int32Array.from(positions), Int32Array.from(cu)),
            { cache },
          );
          const last = native.gatherRows(hidden, tensor(Int32Array.from(cu.slice(1), (n) => n - 1)));
          return sampleStep(decoder.logits(last), running, o);
        });
      const step = onDevice(model.device, () => noGrad(compute));
      const ids = (await step.ids.data()) as Int32Array;
      const logprob = step.logprob?.dataSync();
      const topValues = step.topValues?.dataSync();
      const topIds = step.topIds?.dataSync();
      for (const t of Object.values(step)) t?.dispose();
      const events: GenerateEvent[] = [];
      running.forEach((g, i) => {
        const id = ids[i]!;
        const k = o.logprobs ?? 0;
        const info: TokenLogprob | undefined =
          o.logprobs === undefined
            ? undefined
            : {
                id,
                logprob: Number(logprob![i]),
                top: Array.from({ length: k }, (_, j) => ({
                  id: Number(topIds![i * k + j]),
                  logprob: Number(topValues![i * k + j]),
                })),
              };
        const event = g.push(id, info);
        if (event) events.push(event);
        if (g.finished) events.push(g.finish());
      });
      running = running.filter((g) => !g.finished);
      yield* events;
    }
  } finally {
    cache.dispose();
  }
}

/**
 * Penalties, then sampling on the device; parameters by row. Log-probabilities are the model's own: before penalties and temperature.
 * Keeps its results past the scope.
 */
function sampleStep(logits_BV: Tensor, running: readonly Generation[], o: ResolvedGenerateOptions) {
  const B = running.length;
  const params = tensor(Float32Array.from(running.flatMap(() => samplingParameters(o))), [B, 8]);
  const own = o.logprobs === undefined ? undefined : native.logSoftmax(logits_BV);
  const top = own && o.logprobs ? native.topk(own, o.logprobs) : undefined;
  const penalised = o.repetitionPenalty !== 1 || o.presencePenalty !== 0 || o.frequencyPenalty !== 0;
  const forSampling = penalised && own ? native.contiguous(logits_BV) : logits_BV;
  if (penalised) {
    const longest = Math.max(...running.map((g) => g.length));
    const history = new Int32Array(B * longest);
    running.forEach((g, i) => history.set([...g.promptIds, ...g.outputIds], i * longest));
    native.applyPenalties(
      forSampling,
      tensor(history, [B, longest]),
      tensor(Int32Array.from(running, (g) => g.length)),
      tensor(Int32Array.from(running, (g) => g.promptIds.length)),
      params,
    );
  }
  const seeds = tensor(Int32Array.from(running.flatMap((g) => seedWords(o.seed + g.index))), [B, 2]);
  const [ids] = native.sample(forSampling, params, seeds, tensor(Int32Array.from(running, (g) => g.outputIds.length)));
  const logprob = own ? native.tokenLogprobs(logits_BV, ids)[0] : undefined;
  return { ids, logprob, topValues: top?.[0], topIds: top?.[1] };
}
