/** Optimizers and learning-rate schedules. States are f32; weights in 16 bits keep an f32 master copy. */
import * as v from "valibot";
import { LlmError } from "./errors.js";
import * as raw from "./gen/ops.js";
import { noGrad } from "./autograd.js";
import { scope } from "./memory.js";
import { parseOptions } from "./options.js";
import { empty, type Tensor } from "./tensor.js";

/** A parameter and its name in checkpoints. */
export interface NamedTensor {
  name: string;
  tensor: Tensor;
}

export const AdamWOptions = v.strictObject({
  /** Peak learning rate. @default 1e-4 */
  lr: v.optional(v.pipe(v.number(), v.minValue(0)), 1e-4),
  /** Decay rates of the first and second moment. @default [0.9, 0.999] */
  betas: v.optional(
    v.tuple([v.pipe(v.number(), v.minValue(0), v.maxValue(1)), v.pipe(v.number(), v.minValue(0), v.maxValue(1))]),
    [0.9, 0.999],
  ),
  /** Added to √v̂. @default 1e-8 */
  eps: v.optional(v.pipe(v.number(), v.minValue(0)), 1e-8),
  /** Decoupled decay, applied to tensors of two or more dims. @default 0 */
  weightDecay: v.optional(v.pipe(v.number(), v.minValue(0)), 0),
});
export type AdamWOptions = v.InferInput<typeof AdamWOptions>;

export const SgdOptions = v.strictObject({
  /** @default 1e-2 */
  lr: v.optional(v.pipe(v.number(), v.minValue(0)), 1e-2),
  /** @default 0 */
  momentum: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1)), 0),
  /** @default 0 */
  weightDecay: v.optional(v.pipe(v.number(), v.minValue(0)), 0),
});
export type SgdOptions = v.InferInput<typeof SgdOptions>;

export interface StepOptions {
  /** Learning rate of this step; default the option's. */
  lr?: number;
  /** Gradients are multiplied by this before clipping: 1 / number of trained tokens. @default 1 */
  gradScale?: number;
  /** Largest global norm of the scaled gradients; 0 = no clipping. @default 0 */
  maxGradNorm?: number;
}

/** One update rule over a fixed list of parameters. */
export interface Optimizer {
  readonly parameters: readonly NamedTensor[];
  /** Steps taken. */
  readonly stepCount: number;
  /** Updates the parameters from their `grad`. @returns the norm of the unscaled gradients, f32 [1]; belongs to the open scope */
  step(options?: StepOptions): Tensor;
  /** The first half of `step()`: counts it and writes its numbers to the device. Before each replay of a recorded `update()`. */
  advance(options?: StepOptions): void;
  /** The second half of `step()`, which can be recorded in a Plan. @returns as step() */
  update(): Tensor;
  /** Drops the gradients. */
  zeroGrad(): void;
  /** Tensors to save for an exact resume, by name. */
  state(): NamedTensor[];
  /** Restores the step count; the tensors of state() are written in place by the caller. */
  restore(stepCount: number): void;
  dispose(): void;
}

abstract class Base implements Optimizer {
  readonly parameters: readonly NamedTensor[];
  stepCount = 0;
  protected readonly masters: (Tensor | null)[];
  protected readonly slots: Map<string, Tensor>[] = [];
  /** The step's numbers on the device: those for tensors of two or more dims, those for the others, [max norm, scale]. */
  private readonly numbers: Tensor;
  protected readonly hyper: Tensor;
  protected readonly hyperNoDecay: Tensor;
  private readonly limits: Tensor;

  constructor(parameters: readonly NamedTensor[], slotNames: readonly string[], hyperSize: number) {
    this.parameters = parameters;
    const make = (p: Tensor): Tensor => {
      const t = empty(p.shape, "f32", "optimizer", p.device).keep();
      raw.fill(t, 0);
      return t;
    };
    this.masters = parameters.map(({ tensor: p }) => {
      if (p.dtype === "f32") return null;
      const master = make(p);
      raw.copy(master, p);
      return master;
    });
    for (const { tensor: p } of parameters) this.slots.push(new Map(slotNames.map((name) => [name, make(p)])));
    const numbers = empty([2 * hyperSize + 2], "f32", "optimizer", parameters[0]?.tensor.device).keep();
    this.numbers = numbers;
    this.hyper = numbers.rows(0, hyperSize).keep();
    this.hyperNoDecay = numbers.rows(hyperSize, 2 * hyperSize).keep();
    this.limits = numbers.rows(2 * hyperSize, 2 * hyperSize + 2).keep();
  }

  protected abstract updateOne(index: number, coefficient: Tensor): void;
  protected abstract hyperValues(lr: number | undefined, decay: boolean): number[];

  step(options: StepOptions = {}): Tensor {
    this.checkGradients();
    this.advance(options);
    return this.update();
  }

  advance({ lr, gradScale = 1, maxGradNorm = 0 }: StepOptions = {}): void {
    this.stepCount++;
    this.numbers.write(
      Float32Array.from([...this.hyperValues(lr, true), ...this.hyperValues(lr, false), maxGradNorm, gradScale]),
    );
  }

  update(): Tensor {
    this.checkGradients();
    return noGrad(() =>
      scope(() => {
        const norm = raw.globalNorm(this.parameters.map((p) => p.tensor.grad!));
        const coefficient = raw.clipCoefficient(norm, this.limits);
        this.parameters.forEach((_, i) => this.updateOne(i, coefficient));
        return norm;
      }),
    );
  }

  private checkGradients(): void {
    const missing = this.parameters.find((p) => !p.tensor.grad);
    if (missing)
      throw new LlmError("INTERNAL", `[optimizer] ${missing.name} has no gradient; run backward() before step()`);
  }

  zeroGrad(): void {
    for (const { tensor: p } of this.parameters) {
      p.grad?.dispose();
      p.grad = undefined;
    }
  }

  state(): NamedTensor[] {
    return this.parameters.flatMap(({ name }, i) => [
      ...[...this.slots[i]!].map(([slot, t]) => ({ name: `${name}.${slot}`, tensor: t })),
      ...(this.masters[i] ? [{ name: `${name}.master`, tensor: this.masters[i] }] : []),
    ]);
  }

  restore(stepCount: number): void {
    this.stepCount = stepCount;
  }

  dispose(): void {
    this.zeroGrad();
    for (const { tensor: t } of this.state()) t.dispose();
    for (const t of [this.hyper, this.hyperNoDecay, this.limits, this.numbers]) t.dispose();
  }
}

class AdamW extends Base {
  private readonly options: v.InferOutput<typeof AdamWOptions>;

  constructor(parameters: readonly NamedTensor[], options: v.InferOutput<typeof AdamWOptions>) {
    super(parameters, ["m", "v"], 7);
    this.options = options;
  }

  protected hyperValues(lr: number | undefined, decay: boolean): number[] {
    const { betas, eps, weightDecay } = this.options;
    return [
      lr ?? this.options.lr,
      betas[0],
      betas[1],
      eps,
      decay ? weightDecay : 0,
      1 - betas[0] ** this.stepCount,
      1 - betas[1] ** this.stepCount,
    ];
  }

  protected updateOne(i: number, coefficient: Tensor): void {
    const p = this.parameters[i]!.tensor;
    const slots = this.slots[i]!;
    raw.adamw(
      p.shape.length >= 2 ? this.hyper : this.hyperNoDecay,
      coefficient,
      p,
      p.grad!,
      slots.get("m")!,
      slots.get("v")!,
      this.masters[i]!,
    );
  }
}

class Sgd extends Base {
  private readonly options: v.InferOutput<typeof SgdOptions>;

  constructor(parameters: readonly NamedTensor[], options: v.InferOutput<typeof SgdOptions>) {
    super(parameters, options.momentum > 0 ? ["m"] : [], 3);
    this.options = options;
  }

  protected hyperValues(lr: number | undefined): number[] {
    return [lr ?? this.options.lr, this.options.momentum, this.options.weightDecay];
  }

  protected updateOne(i: number, coefficient: Tensor): void {
    const p = this.parameters[i]!.tensor;
    raw.sgd(this.hyper, coefficient, p, p.grad!, this.slots[i]!.get("m") ?? null, this.masters[i]!);
  }
}

/**
 * AdamW: m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², p ← p − lr·(m̂/(√v̂ + eps) + λp).
 * @see Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, in the order of torch.optim.AdamW
 */
export function createAdamW(parameters: readonly NamedTensor[], options: AdamWOptions = {}): Optimizer {
  return new AdamW(parameters, parseOptions(AdamWOptions, options, "createAdamW"));
}

/** Gradient descent: m ← μm + g + λp, p ← p − lr·m (without momentum: p ← p − lr·(g + λp)), as torch.optim.SGD. */
export function createSgd(parameters: readonly NamedTensor[], options: SgdOptions = {}): Optimizer {
  return new Sgd(parameters, parseOptions(SgdOptions, options, "createSgd"));
}

/** Learning rate of optimizer step `step` (0-based): a pure function, so resuming needs no state. */
export type Schedule = (step: number) => number;

export const ScheduleOptions = v.strictObject({
  /** Shape after the warm-up. "noam" = d_model^-0.5 · min(step^-0.5, step · warmup^-1.5), with lr as a factor. @default "cosine" */
  kind: v.optional(v.picklist(["constant", "linear", "cosine", "noam"]), "cosine"),
  /** Peak learning rate (a factor for noam). */
  lr: v.pipe(v.number(), v.minValue(0)),
  /** Steps in all. */
  totalSteps: v.pipe(v.number(), v.integer(), v.minValue(1)),
  /** Linear warm-up from 0, in steps. @default 0 */
  warmupSteps: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0)), 0),
  /** Floor as a fraction of lr (linear, cosine). @default 0 */
  minRatio: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1)), 0),
  /** Model width for noam. @default 512 */
  width: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 512),
});
export type ScheduleOptions = v.InferInput<typeof ScheduleOptions>;

/**
 * Linear warm-up, then constant, linear or cosine decay to minRatio · lr; or Noam.
 * @see Vaswani et al. 2017, arXiv:1706.03762, eq. 3; Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5
 */
export function createSchedule(options: ScheduleOptions): Schedule {
  const { kind, lr, totalSteps, warmupSteps, minRatio, width } = parseOptions(
    ScheduleOptions,
    options,
    "createSchedule",
  );
  if (kind === "noam") {
    const warmup = Math.max(warmupSteps, 1);
    return (step) => lr * width ** -0.5 * Math.min((step + 1) ** -0.5, (step + 1) * warmup ** -1.5);
  }
  return (step) => {
    if (step < warmupSteps) return (lr * (step + 1)) / (warmupSteps + 1);
    if (kind === "constant") return lr;
    const t = Math.min(1, (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
    const shape = kind === "linear" ? 1 - t : 0.5 * (1 + Math.cos(Math.PI * t));
    return lr * (minRatio + (1 - minRatio) * shape);
  };
}
