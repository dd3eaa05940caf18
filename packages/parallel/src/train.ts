/** train(): the trainer. */
import {
  createAdamW,
  createSchedule,
  createSgd,
  LlmError,
  memory,
  type NamedTensor,
  NumericError,
  type Optimizer,
  OptionsError,
  parseOptions,
  type Schedule,
  UnsupportedError,
} from "@llm/core";
import type { CausalLM, TokenBatch } from "@llm/models";
import { checkBatch, openData, type OpenedData, splitBatch } from "./batch-source.js";
import {
  checkExact,
  listCheckpoints,
  readRunState,
  removeUnfinished,
  restoreCheckpoint,
  type RunState,
  saveCheckpoint,
} from "./checkpoint.js";
import { evaluateLoss } from "./evaluate-loss.js";
import { LossCurve } from "./loss-curve.js";
import { EagerExecution } from "./execution.js";
import { causalLanguageModel, type Objective, type Replay, type ReplayableObjective } from "./objective.js";
import { type ResolvedTrainOptions, TrainOptions } from "./options.js";
import { chooseParameters, markTrainable } from "./parameters.js";
import { createProgress } from "./progress.js";
import type { EvaluationReport, StepReport, TrainResult } from "./report.js";
import { sampleAnswers } from "./sample.js";
import { ReplayedExecution } from "./replay.js";
import { type StepNumbers, StepRunner } from "./step.js";
import { TrainRun } from "./train-run.js";

/**
 * Trains a model in place, on one device, and starts at once.
 *
 * A step reads `accumulation` batches, cuts them into micro-batches, adds up the gradients of their summed losses and divides once by
 * the weight of all labels, so that the result does not depend on the cut: g = Σ ∂lossSum / Σ weightSum. Then the global norm is
 * clipped and the optimizer updates. Reports come when their numbers arrive, while the next step is already queued.
 *
 * ```ts
 * for await (const step of train({ model, data, epochs: 3, lr: 2e-4 })) console.log(step.loss, step.tokensPerSecond);
 * ```
 *
 * @returns the run: iterate over it for reports, await `done` for the end. Leaving the loop does not stop it; `signal` does.
 * @throws {OptionsError | UnsupportedError} at once: options that do not fit together or the model
 * @throws {NumericError} through `done`: a loss or gradient that is not finite, with `data.step`. The weights may hold it then: go back to a checkpoint
 * @see design of the divisor: https://unsloth.ai/blog/gradient and transformers pull request 34191
 */
export function train<M extends object = CausalLM>(options: TrainOptions<M>): TrainRun {
  const o = parseOptions(TrainOptions, options, "train");
  const plan = planRun(o);
  return new TrainRun(async (emit) => {
    try {
      return await run(plan, emit);
    } finally {
      plan.release();
    }
  });
}

interface RunPlan {
  o: ResolvedTrainOptions;
  model: object;
  objective: Objective<object>;
  /** Given: steps are replayed from a recording. */
  replay: Replay<object> | undefined;
  parameters: NamedTensor[];
  optimizer: Optimizer;
  opened: OpenedData;
  totalSteps: number;
  schedule: Schedule;
  exact: RunState["exact"];
  /** Gives the model's flags back and frees what the run made. */
  release(): void;
}

/** Checks the options against model and data; makes the optimizer. */
function planRun(o: ResolvedTrainOptions): RunPlan {
  const model = o.model as Partial<CausalLM>;
  if (o.objective === undefined && !(model.decoder && typeof model.hidden === "function")) {
    throw new OptionsError("[train] model: expected a CausalLM, or an own objective with it");
  }
  const objective = (o.objective ?? causalLanguageModel) as Objective<object> | ReplayableObjective<object>;
  if (o.replay && !("replay" in objective))
    throw new OptionsError("[train] replay: the objective has no `replay` part to record; causalLanguageModel has");
  const dtype = model.decoder?.embed.weight.dtype;
  if (dtype === "f16")
    throw new UnsupportedError(
      '[train] a model in f16 needs loss scaling, which does not exist here; load it with dtype "bf16" or "f32"',
    );
  if (o.precision !== undefined && dtype !== undefined && dtype !== o.precision) {
    throw new OptionsError(
      `[train] precision: expected a model in ${o.precision}, got ${dtype}; load it with { dtype: "${o.precision}" }`,
    );
  }
  if (o.batchSize !== undefined && o.batchTokens !== undefined)
    throw new OptionsError("[train] expected batchSize or batchTokens, got both");
  if (o.steps !== undefined && o.epochs !== undefined)
    throw new OptionsError("[train] expected steps or epochs, got both");
  if (o.output !== undefined && typeof model.save !== "function")
    throw new OptionsError("[train] output: the model has no save()");
  if (o.sample && typeof model.generate !== "function")
    throw new OptionsError("[train] sample: the model has no generate()");

  const opened = openData(o.data, {
    epochs: o.epochs ?? (o.steps === undefined ? 1 : Infinity),
    ...(o.batchSize === undefined ? {} : { batchSize: o.batchSize }),
    ...(o.batchTokens === undefined ? {} : { batchTokens: o.batchTokens }),
    ...(o.seed === undefined ? {} : { seed: o.seed }),
  });
  const totalSteps =
    o.steps ?? (opened.totalBatches === undefined ? undefined : Math.ceil(opened.totalBatches / o.accumulation));
  if (totalSteps === undefined)
    throw new OptionsError("[train] steps: needed, because the data does not say how long it is");

  const { kind, warmupSteps, warmupRatio, minRatio } = o.schedule;
  if (warmupSteps !== undefined && warmupRatio !== undefined)
    throw new OptionsError("[train] schedule: expected warmupSteps or warmupRatio, got both");
  const schedule = createSchedule({
    kind,
    lr: o.lr,
    totalSteps,
    minRatio,
    warmupSteps: warmupSteps ?? Math.ceil((warmupRatio ?? 0) * totalSteps),
    ...(model.decoder ? { width: model.decoder.spec.hiddenSize } : {}),
  });

  const parameters = chooseParameters(model, o.parameters);
  const optimizer = makeOptimizer(o, parameters);
  const restore = markTrainable(model, parameters);
  const own = typeof o.optimizer === "string";
  return {
    o,
    model,
    objective,
    replay: o.replay && "replay" in objective ? objective.replay : undefined,
    parameters,
    optimizer,
    opened,
    totalSteps,
    schedule,
    exact: exactFacts(o, opened, parameters, totalSteps),
    release: () => {
      optimizer.zeroGrad();
      restore();
      if (own) optimizer.dispose();
    },
  };
}

function makeOptimizer(o: ResolvedTrainOptions, parameters: readonly NamedTensor[]): Optimizer {
  const given = (keys: readonly ("betas" | "eps" | "momentum" | "weightDecay")[]) =>
    Object.fromEntries(keys.filter((k) => o[k] !== undefined).map((k) => [k, o[k]]));
  const refuse = (keys: readonly ("betas" | "eps" | "momentum" | "weightDecay")[], name: string): void => {
    const [odd] = Object.keys(given(keys));
    if (odd !== undefined) throw new OptionsError(`[train] ${odd}: has no effect on ${name}`);
  };
  if (o.optimizer === "adamw") {
    refuse(["momentum"], "adamw");
    return createAdamW(parameters, { lr: o.lr, ...given(["betas", "eps", "weightDecay"]) });
  }
  if (o.optimizer === "sgd") {
    refuse(["betas", "eps"], "sgd");
    return createSgd(parameters, { lr: o.lr, ...given(["momentum", "weightDecay"]) });
  }
  refuse(["betas", "eps", "momentum", "weightDecay"], "an optimizer that was made already");
  const known = new Set(o.optimizer.parameters.map((p) => p.tensor));
  const odd = parameters.find((p) => !known.has(p.tensor));
  if (odd || known.size !== parameters.length) {
    throw new OptionsError(
      `[train] optimizer: expected one over the ${parameters.length} trained tensors, got one over ${known.size}${odd ? `, without ${odd.name}` : ""}`,
    );
  }
  return o.optimizer;
}

/** What a resumed run must share with the one that wrote the checkpoint. */
function exactFacts(
  o: ResolvedTrainOptions,
  opened: OpenedData,
  parameters: readonly NamedTensor[],
  totalSteps: number,
): RunState["exact"] {
  return {
    totalSteps,
    optimizer: typeof o.optimizer === "string" ? o.optimizer : "given",
    lr: o.lr,
    betas: o.betas ?? null,
    eps: o.eps ?? null,
    momentum: o.momentum ?? null,
    weightDecay: o.weightDecay ?? null,
    "schedule.kind": o.schedule.kind,
    "schedule.warmupSteps": o.schedule.warmupSteps ?? null,
    "schedule.warmupRatio": o.schedule.warmupRatio ?? null,
    "schedule.minRatio": o.schedule.minRatio,
    batchSize: o.batchSize ?? null,
    batchTokens: o.batchTokens ?? null,
    microBatchTokens: o.microBatchTokens ?? null,
    accumulation: o.accumulation,
    maxGradNorm: o.maxGradNorm,
    replay: o.replay,
    seed: o.seed ?? null,
    onNonFinite: o.onNonFinite,
    parameters: parameters.length,
    scalars: parameters.reduce((n, p) => n + p.tensor.size, 0),
    ...Object.fromEntries(Object.entries(opened.identity).map(([key, value]) => [`data.${key}`, value])),
  };
}

/** Finds what to resume from. */
async function findCheckpoint(options: NonNullable<ResolvedTrainOptions["checkpoint"]>): Promise<string | undefined> {
  await removeUnfinished(options.folder);
  const existing = await listCheckpoints(options.folder);
  if (typeof options.resume === "string") return options.resume;
  if (options.resume) return existing.at(-1);
  if (existing.length > 0) {
    throw new OptionsError(
      `[train] checkpoint.folder: ${options.folder} holds checkpoints of another run (${existing.length}); set resume, or choose an empty folder`,
    );
  }
  return undefined;
}

/** Tokens per second over the last half second or more of training; evaluations, samples and checkpoints are left out. */
class Speed {
  #marks: { at: number; tokens: number }[];

  constructor(now: number) {
    this.#marks = [{ at: now, tokens: 0 }];
  }

  add(now: number, tokens: number): number {
    this.#marks.push({ at: now, tokens });
    while (this.#marks.length > 2 && now - this.#marks[1]!.at >= 500) this.#marks.shift();
    const read = this.#marks.slice(1).reduce((n, mark) => n + mark.tokens, 0);
    return (read * 1000) / Math.max(now - this.#marks[0]!.at, 1e-3);
  }

  /** Training goes on now after something else: the time since the last report does not count. */
  pause(now: number): void {
    const gap = now - this.#marks.at(-1)!.at;
    for (const mark of this.#marks) mark.at += gap;
  }
}

async function run(plan: RunPlan, emit: (report: StepReport) => void): Promise<TrainResult> {
  const { o, model, objective, parameters, optimizer, opened, totalSteps, schedule } = plan;
  const began = performance.now();
  let step = 0;
  let batches = 0;
  let newest: string | undefined;
  if (o.checkpoint) {
    newest = await findCheckpoint(o.checkpoint);
    if (newest !== undefined) {
      const state = readRunState(newest);
      if (!o.checkpoint.force) checkExact(newest, state.exact, plan.exact);
      restoreCheckpoint(newest, parameters, optimizer, state);
      step = state.step;
      batches = state.batches;
    }
  }
  const first = step;
  const curve = o.curve ? await LossCurve.open(o.curve, step) : undefined;
  const progress = createProgress(o.progress, o.logEvery, totalSteps);
  const execution = plan.replay
    ? new ReplayedExecution(model, plan.replay, optimizer)
    : new EagerExecution(model, objective, optimizer);
  const runner = new StepRunner(execution);
  const iterator = opened.from(batches);
  let last: StepReport | undefined;
  let tokensRead = 0;
  let evaluation: EvaluationReport | undefined;
  const speed = new Speed(began);

  const report = (
    at: { step: number; lr: number; epoch: number | undefined; tokens: number; learnedTokens: number },
    numbers: StepNumbers,
  ): StepReport => {
    const now = performance.now();
    const loss = numbers.lossSum / numbers.weight;
    if (numbers.skipped === undefined && !(Number.isFinite(loss) && Number.isFinite(numbers.gradNorm))) {
      throw new NumericError(
        `[train] step ${at.step}: the loss is ${loss} and the gradient's norm ${numbers.gradNorm}; the weights are not to be trusted any more, go back to a checkpoint. Lower lr, set maxGradNorm, or skip such steps with onNonFinite: "skip"`,
        { step: at.step, loss, gradNorm: numbers.gradNorm },
      );
    }
    const metrics = Object.entries(numbers.metricSums);
    const made: StepReport = {
      ...at,
      totalSteps,
      loss,
      gradNorm: numbers.gradNorm,
      tokensPerSecond: speed.add(now, at.tokens),
      elapsedMs: now - began,
      etaMs: ((now - began) / (at.step - first)) * (totalSteps - at.step),
      memoryBytes: memory(parameters[0]!.tensor.device).liveBytes,
      ...(numbers.skipped ? { skipped: numbers.skipped } : {}),
      ...(metrics.length > 0
        ? { metrics: Object.fromEntries(metrics.map(([name, value]) => [name, value / numbers.weight])) }
        : {}),
    };
    tokensRead += at.tokens;
    return made;
  };
  const publish = (made: StepReport): void => {
    last = made;
    emit(made);
    curve?.add(made);
    progress.report(made);
    o.onReport?.(made);
  };
  const save = async (): Promise<string> => {
    const { folder, keep } = o.checkpoint!;
    const state: RunState = {
      version: 1,
      step,
      optimizerSteps: optimizer.stepCount,
      batches,
      totalSteps,
      exact: plan.exact,
    };
    newest = await saveCheckpoint(folder, parameters, optimizer, state, keep);
    return newest;
  };

  try {
    /** The step before, whose numbers are still to come. */
    let before: Promise<void> | undefined;
    while (step < totalSteps) {
      if (o.signal?.aborted) {
        await before;
        if (o.checkpoint?.onAbort && step > first) await save();
        o.signal.throwIfAborted();
      }
      const read: (TokenBatch & { epoch?: number })[] = [];
      while (read.length < o.accumulation) {
        const next = iterator.next();
        const item = next instanceof Promise ? await next : next;
        if (item.done) break;
        read.push(checkBatch(item.value));
      }
      if (read.length === 0) {
        await before;
        throw new LlmError(
          "OPTIONS",
          `[train] the data ended after ${batches} batches, at step ${step} of ${totalSteps}`,
          { step, totalSteps },
        );
      }
      const micros = read.flatMap((batch) => splitBatch(batch, o.microBatchTokens));
      const lr = schedule(step);
      const context = { step, totalSteps, checkpointing: o.checkpointing, training: true };
      const { numbers } = await runner.queue(micros, context, {
        parameters: optimizer.parameters,
        lr,
        maxGradNorm: o.maxGradNorm,
        skipNonFinite: o.onNonFinite === "skip",
        seed: o.seed ?? 0,
      });
      step++;
      batches += read.length;
      const facts = {
        step,
        lr,
        epoch: read[0]!.epoch,
        tokens: read.reduce((n, b) => n + b.ids_T.length, 0),
        learnedTokens: read.reduce((n, b) => n + b.labels_T.reduce((m, label) => m + (label >= 0 ? 1 : 0), 0), 0),
      };
      await before;
      before = undefined;

      const atEnd = step === totalSteps;
      const due = (every: number | undefined): boolean => atEnd || (every !== undefined && step % every === 0);
      const evaluateNow = o.evaluation !== undefined && due(o.evaluation.every);
      const sampleNow = o.sample !== undefined && due(o.sample.every);
      const saveNow = o.checkpoint !== undefined && due(o.checkpoint.every);
      if (!evaluateNow && !sampleNow && !saveNow) {
        before = numbers.then((n) => publish(report(facts, n)));
        before.catch(() => {});
        continue;
      }
      const made = report(facts, await numbers);
      await runner.drain();
      if (saveNow) made.checkpoint = await save();
      if (evaluateNow) {
        evaluation = await evaluateLoss(model, objective, o.evaluation!, { step, totalSteps, signal: o.signal });
        made.evaluation = evaluation;
      }
      if (sampleNow) made.samples = await sampleAnswers(model as CausalLM, o.sample!, o.signal);
      speed.pause(performance.now());
      publish(made);
    }
    await before;
    await runner.drain();
    if (o.output !== undefined) await (model as CausalLM).save(o.output);
  } finally {
    await iterator.return?.();
    execution.dispose();
    progress.end();
    await curve?.close();
  }
  return {
    steps: step,
    loss: last?.loss ?? Number.NaN,
    tokens: tokensRead,
    elapsedMs: performance.now() - began,
    ...(evaluation ? { evaluation } : {}),
    ...(newest === undefined ? {} : { checkpoint: newest }),
  };
}
