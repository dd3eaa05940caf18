/** Turns a step plan into ids: forward pass over the paged cache, logits, sampling. B rows sampled, V vocabulary. */
import { native, noGrad, onDevice, Plan, recordPlan, scope, type Tensor, tensor } from "@llm/core";
import type { PagedCache, PagedStep } from "@llm/kvcache";
import {
  type CausalLM,
  type DecoderInputs,
  type ResolvedGenerateOptions,
  ropeDependsOnLength,
  samplingParameters,
  seedWords,
  type TokenLogprob,
} from "@llm/models";
import type { ScheduleRequest } from "./scheduler-sequence.js";
import type { StepEntry, StepPlan } from "./scheduler-plan.js";

/** What a request brings to the runner. */
export interface RunnerRequest extends ScheduleRequest {
  readonly sampling: ResolvedGenerateOptions;
  /** Alternatives to report for prompt tokens; undefined = none. */
  readonly promptLogprobs?: number | undefined;
}

/** Results of a step on the host. */
export interface StepOutput {
  /** One id per entry with `samplesToken`, in order. */
  ids: Int32Array;
  /** Parallel to `ids`; set where the request asked. */
  logprobs: (TokenLogprob | undefined)[];
  /** Log-probabilities of prompt tokens by entry index; item i is the token at position startToken + i + 1. */
  promptLogprobs: Map<number, TokenLogprob[]>;
}

/** A recorded decode step for up to `size` sequences: fixed input buffers and the logits and samples that a replay leaves. */
interface DecodePlan {
  size: number;
  plan: Plan;
  inputs: Tensor[];
  step: PagedStep;
  sampling: { params: Tensor; seeds: Tensor; steps: Tensor };
  logits: Tensor;
  ids: Tensor;
}

type Entry = StepEntry<RunnerRequest>;

export class Runner {
  private readonly model: CausalLM;
  private readonly cache: PagedCache;
  private readonly tableWidth: number;
  private readonly usePlans: boolean;
  /** Longest sequence that the block tables hold. */
  private readonly maxLength: number;
  private readonly decodePlans = new Map<number, DecodePlan>();

  /** @param usePlans replay recorded Plans for steps in which every sequence has one token */
  constructor(model: CausalLM, cache: PagedCache, tableWidth: number, usePlans: boolean) {
    this.model = model;
    this.cache = cache;
    this.tableWidth = tableWidth;
    this.maxLength = tableWidth * cache.blockSize;
    // Rotary tables that change with the length cannot be part of a fixed recording.
    const dependent = ropeDependsOnLength(model.spec.rope);
    this.usePlans = usePlans && !dependent;
  }

  /** Queues the step on the core's thread and waits for its ids without blocking the event loop. */
  async run(plan: StepPlan<RunnerRequest>): Promise<StepOutput> {
    const entries = plan.entries.filter((e) => e.samplesToken);
    const decodeOnly =
      plan.decodeCount === plan.entries.length &&
      entries.length === plan.entries.length &&
      !plan.entries.some((e) => e.promptLogits);
    const compute = () => scope(() => this.queue(plan, entries, this.usePlans && decodeOnly));
    const step = onDevice(this.model.device, () => noGrad(compute));
    const result: StepOutput = {
      ids: new Int32Array(0),
      logprobs: entries.map(() => undefined),
      promptLogprobs: new Map(),
    };
    try {
      if (step.ids) result.ids = ((await step.ids.data()) as Int32Array).slice(0, entries.length);
      else if (step.fence) await step.fence.data();
      if (step.logprob) this.readLogprobs(entries, result, step);
      for (const p of step.prompts) result.promptLogprobs.set(p.entry, readTopk(p, p.targets));
    } finally {
      for (const t of step.owned) t.dispose();
    }
    return result;
  }

  private queue(plan: StepPlan<RunnerRequest>, entries: readonly Entry[], replay: boolean) {
    this.cache.copyBlocks(plan.copies);
    const owned: Tensor[] = [];
    const own = <T extends Tensor>(t: T): T => {
      owned.push(t.keep());
      return t;
    };
    let logits: Tensor | undefined;
    let ids: Tensor | undefined;
    let hidden: Tensor | undefined;
    let recorded: DecodePlan | undefined;
    if (replay) {
      recorded = this.replay(plan, entries);
      logits = recorded.logits.rows(0, entries.length);
    } else {
      hidden = this.forward(plan);
      if (entries.length > 0)
        logits = this.model.decoder.logits(native.gatherRows(hidden, tensor(plan.sampleRows.slice())));
    }
    const prompts = hidden
      ? plan.entries
          .flatMap((e, i) => (e.promptLogits ? [this.promptLogprobs(plan, e, i, hidden!, own)] : []))
          .filter((p) => p !== undefined)
      : [];
    const wanted = Math.max(-1, ...entries.map((e) => e.sequence.request.sampling.logprobs ?? -1));
    const penalised = entries.some(
      ({
        sequence: {
          request: { sampling: s },
        },
      }) => s.repetitionPenalty !== 1 || s.presencePenalty !== 0 || s.frequencyPenalty !== 0,
    );
    let logprob: Tensor | undefined;
    let top: [Tensor, Tensor] | undefined;
    if (logits) {
      if (recorded && !penalised && wanted < 0) ids = recorded.ids;
      else {
        let forSampling = logits;
        if (wanted >= 0) {
          const all = native.logSoftmax(native.contiguous(logits));
          if (wanted > 0) top = native.topk(all, wanted).map(own) as [Tensor, Tensor];
        }
        if (penalised) {
          forSampling = native.contiguous(logits);
          this.penalise(forSampling, entries);
        }
        const s = this.samplingInputs(entries, entries.length);
        const [sampled] = native.sample(
          native.contiguous(forSampling),
          tensor(s.params, [entries.length, 8]),
          tensor(s.seeds, [entries.length, 2]),
          tensor(s.steps),
        );
        ids = own(sampled);
        if (wanted >= 0) logprob = own(native.tokenLogprobs(native.contiguous(logits), ids)[0]);
      }
    }
    const fence = ids ? undefined : hidden ? own(hidden.rows(0, Math.min(1, hidden.dim(0)))) : undefined;
    return { ids, logprob, top, prompts, owned, fence, wanted };
  }

  private forward(plan: StepPlan<RunnerRequest>): Tensor {
    let length = 0;
    for (const p of plan.positions) if (p >= length) length = p + 1;
    const rows = plan.entries.length;
    this.cache.step = {
      slots_T: tensor(plan.slots.slice()),
      blockTables: tensor(plan.blockTables.slice(), [rows, plan.blockTableWidth]),
      kvLengths_B: tensor(plan.kvLengths.slice()),
    };
    const inputs: DecoderInputs = {
      ids_T: tensor(plan.ids.slice()),
      positions_T: tensor(plan.positions.slice()),
      cuSeqlens_B1: tensor(plan.cuSeqlens.slice()),
      length,
    };
    return this.model.decoder.forward(inputs, { cache: this.cache });
  }

  /** Writes the step into the bucket's buffers and queues its replay. */
  private replay(plan: StepPlan<RunnerRequest>, entries: readonly Entry[]): DecodePlan {
    const rows = plan.entries.length;
    let size = 1;
    while (size < rows) size *= 2;
    const d = this.decodePlans.get(size) ?? this.record(size);
    const pad = (values: Int32Array, length: number, fill: number): Int32Array => {
      const out = new Int32Array(length).fill(fill);
      out.set(values);
      return out;
    };
    d.inputs[0]!.write(pad(plan.ids, size, 0));
    d.inputs[1]!.write(pad(plan.positions, size, 0));
    // Padding rows have a query but no keys, and store nothing.
    d.inputs[2]!.write(Int32Array.from({ length: size + 1 }, (_, i) => i));
    d.step.slots_T.write(pad(plan.slots, size, -1));
    d.step.blockTables.write(pad(plan.blockTables, size * this.tableWidth, 0));
    d.step.kvLengths_B.write(pad(plan.kvLengths, size, 0));
    const s = this.samplingInputs(entries, size);
    d.sampling.params.write(s.params);
    d.sampling.seeds.write(s.seeds);
    d.sampling.steps.write(s.steps);
    d.plan.run();
    return d;
  }

  private record(size: number): DecodePlan {
    const i32 = (shape: number[]): Tensor => tensor(new Int32Array(shape.reduce((a, b) => a * b, 1)), shape).keep();
    const inputs = [i32([size]), i32([size]), i32([size + 1])];
    const step: PagedStep = {
      slots_T: i32([size]),
      blockTables: i32([size, this.tableWidth]),
      kvLengths_B: i32([size]),
    };
    const sampling = {
      params: tensor(new Float32Array(size * 8), [size, 8]).keep(),
      seeds: i32([size, 2]),
      steps: i32([size]),
    };
    this.model.decoder.rotary(this.maxLength);
    // Layouts that kernels make on first use must exist before: a recording owns what is made inside it.
    scope(
      () =>
        void this.model.decoder.forward(
          { ids_T: inputs[0]!, positions_T: inputs[1]!, cuSeqlens_B1: tensor(new Int32Array(size + 1)), length: 1 },
          { cache: this.idle(step) },
        ),
    );
    this.cache.step = step;
    const { plan, result } = recordPlan(() =>
      scope(() => {
        const hidden = this.model.decoder.forward(
          { ids_T: inputs[0]!, positions_T: inputs[1]!, cuSeqlens_B1: inputs[2]!, length: this.maxLength },
          { cache: this.cache },
        );
        const logits = this.model.decoder.logits(hidden);
        const [ids] = native.sample(logits, sampling.params, sampling.seeds, sampling.steps);
        return { logits, ids };
      }),
    );
    result.logits.keep();
    result.ids.keep();
    const recorded = { size, plan, inputs, step, sampling, ...result };
    this.decodePlans.set(size, recorded);
    return recorded;
  }

  /** The cache with a step that stores nothing, for warming up. */
  private idle(step: PagedStep): PagedCache {
    step.slots_T.write(new Int32Array(step.slots_T.size).fill(-1));
    this.cache.step = step;
    return this.cache;
  }

  private samplingInputs(
    entries: readonly Entry[],
    rows: number,
  ): { params: Float32Array; seeds: Int32Array; steps: Int32Array } {
    const params = new Float32Array(rows * 8);
    const seeds = new Int32Array(rows * 2);
    const steps = new Int32Array(rows);
    entries.forEach(({ sequence }, i) => {
      const { sampling } = sequence.request;
      params.set(samplingParameters(sampling), i * 8);
      seeds.set(seedWords(sampling.seed + sequence.index), i * 2);
      steps[i] = sequence.generatedCount;
    });
    return { params, seeds, steps };
  }

  private penalise(logits: Tensor, entries: readonly Entry[]): void {
    const rows = entries.length;
    const longest = Math.max(...entries.map((e) => e.sequence.length));
    const history = new Int32Array(rows * longest);
    entries.forEach(({ sequence: s }, i) => history.set(s.tokens.subarray(0, s.length), i * longest));
    native.applyPenalties(
      logits,
      tensor(history, [rows, longest]),
      tensor(Int32Array.from(entries, (e) => e.sequence.length)),
      tensor(Int32Array.from(entries, (e) => e.sequence.promptLength)),
      tensor(this.samplingInputs(entries, rows).params, [rows, 8]),
    );
  }

  /** Log-probabilities of the prompt tokens that this chunk's positions predict. */
  private promptLogprobs(
    plan: StepPlan<RunnerRequest>,
    e: Entry,
    index: number,
    hidden: Tensor,
    own: <T extends Tensor>(t: T) => T,
  ) {
    const { sequence } = e;
    const count = Math.min(e.tokenCount, sequence.promptLength - 1 - e.startToken);
    if (count <= 0) return undefined;
    const begin = plan.cuSeqlens[index]!;
    const targets = sequence.tokens.slice(e.startToken + 1, e.startToken + 1 + count);
    const logits = this.model.decoder.logits(native.contiguous(hidden.rows(begin, begin + count)));
    const k = sequence.request.promptLogprobs ?? 0;
    const [logprob] = native.tokenLogprobs(logits, tensor(targets));
    const top = k > 0 ? (native.topk(native.logSoftmax(logits), k).map(own) as [Tensor, Tensor]) : undefined;
    return { entry: index, targets, logprob: own(logprob), top, k };
  }

  private readLogprobs(
    entries: readonly Entry[],
    result: StepOutput,
    step: { logprob?: Tensor | undefined; top?: [Tensor, Tensor] | undefined; wanted: number },
  ): void {
    const all = readTopk({ logprob: step.logprob!, top: step.top, k: Math.max(step.wanted, 0) }, result.ids);
    entries.forEach(({ sequence }, i) => {
      const k = sequence.request.sampling.logprobs;
      if (k !== undefined) result.logprobs[i] = { ...all[i]!, top: all[i]!.top.slice(0, k) };
    });
  }

  dispose(): void {
    for (const d of this.decodePlans.values()) {
      for (const t of [...d.inputs, ...Object.values(d.step), ...Object.values(d.sampling), d.logits, d.ids])
        t.dispose();
      d.plan.dispose();
    }
    this.decodePlans.clear();
  }
}

function readTopk(
  from: { logprob: Tensor; top?: [Tensor, Tensor] | undefined; k: number },
  ids: Int32Array,
): TokenLogprob[] {
  const logprob = from.logprob.dataSync();
  const values = from.top?.[0].dataSync();
  const indices = from.top?.[1].dataSync();
  return Array.from(ids, (id, i) => ({
    id,
    logprob: Number(logprob[i]),
    top: Array.from({ length: values ? from.k : 0 }, (_, j) => ({
      id: Number(indices![i * from.k + j]),
      logprob: Number(values![i * from.k + j]),
    })),
  }));
}
