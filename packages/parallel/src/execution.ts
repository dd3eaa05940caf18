/** How the parts of a training step reach the device: computed anew each time here, replayed from a recording in replay.ts. */
import {
  backward,
  native,
  noGrad,
  onDevice,
  type Optimizer,
  scope,
  setRandomStep,
  type StepOptions,
  type Tensor,
} from "@llm/core";
import type { TokenBatch } from "@llm/models";
import type { Objective, ObjectiveContext, ObjectiveResult } from "./objective.js";

/** Results of a micro-batch that the queue is still computing: [loss sum, metric sums…], f32. */
export interface Queued {
  names: string[];
  values: Promise<Float32Array>;
  weight: number | Promise<number>;
}

/** How the parts of a step reach the device. */
export interface Execution {
  /** Queues forward and backward of a micro-batch; gradients are added to the parameters'. `number` is what its random ops depend on. */
  micro(batch: TokenBatch, context: ObjectiveContext, number: number): Queued;
  /** Queues the update and drops the gradients. @returns the norm of the gradients' sum */
  update(options: StepOptions): Promise<Float32Array>;
  /** Drops the gradients. */
  discard(): void;
  dispose(): void;
}

/** Reads a tensor without blocking; a failure waits for whoever awaits the result. */
export function read(t: Tensor): Promise<Float32Array> {
  const values = t.data() as Promise<Float32Array>;
  values.catch(() => {});
  return values;
}

export function readAndFree(t: Tensor): Promise<Float32Array> {
  t.keep();
  const values = read(t).finally(() => t.dispose());
  values.catch(() => {});
  return values;
}

/** Backward of an objective's loss. @returns [loss sum, metric sums…] as one tensor, and the metrics' names */
export function lossAndGradients({ lossSum, metrics = {} }: Omit<ObjectiveResult, "weightSum">): {
  names: string[];
  values: Tensor;
} {
  backward(lossSum);
  const sums = [lossSum, ...Object.values(metrics)];
  const values = noGrad(() => (sums.length === 1 ? native.cast(sums[0]!, 0) : native.concatRows(sums)));
  return { names: Object.keys(metrics), values };
}

/** Every step anew, with any objective. */
export class EagerExecution<M> implements Execution {
  readonly #model: M;
  readonly #objective: Objective<M>;
  readonly #optimizer: Optimizer;

  constructor(model: M, objective: Objective<M>, optimizer: Optimizer) {
    this.#model = model;
    this.#objective = objective;
    this.#optimizer = optimizer;
  }

  micro(batch: TokenBatch, context: ObjectiveContext, number: number): Queued {
    const compute = (): Queued => {
      setRandomStep(number);
      const result = this.#objective(this.#model, batch, context);
      const { names, values } = lossAndGradients(result);
      const { weightSum } = result;
      const weight = typeof weightSum === "number" ? weightSum : readAndFree(weightSum.detach()).then((w) => w[0]!);
      if (typeof weight !== "number") weight.catch(() => {});
      return { names, values: readAndFree(values), weight };
    };
    return onDevice(this.#optimizer.parameters[0]!.tensor.device, () => scope(compute));
  }

  update(options: StepOptions): Promise<Float32Array> {
    const norm = readAndFree(this.#optimizer.step(options));
    this.discard();
    return norm;
  }

  discard(): void {
    this.#optimizer.zeroGrad();
  }

  dispose(): void {}
}
