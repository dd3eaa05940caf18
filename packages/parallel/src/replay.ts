/** Steps that are recorded once and replayed: the host only writes a batch's arrays and the step's numbers (one CUDA graph a micro-batch). */
import {
  empty,
  LlmError,
  native,
  noGrad,
  onDevice,
  type Optimizer,
  type Plan,
  recordPlan,
  scope,
  type StepOptions,
  synchronize,
  type Tensor,
  tensor,
} from "@llm/core";
import type { TokenBatch } from "@llm/models";
import { batchWeight, type BatchRoom, type ObjectiveContext, type Replay, roomOf } from "./objective.js";
import { type Execution, lossAndGradients, type Queued, read } from "./execution.js";

const roundUp = (n: number, to: number): number => Math.ceil(n / to) * to;

/** The room of both. What was too small grows by a quarter at least, so that slowly growing batches are not recorded again and again. */
function widened(a: BatchRoom | undefined, b: BatchRoom): BatchRoom {
  const most = (key: "tokens" | "documents" | "learned" | "length"): number => {
    const had = a?.[key] ?? 0;
    return b[key] <= had ? had : Math.max(b[key], Math.ceil(1.25 * had));
  };
  return {
    tokens: roundUp(most("tokens"), 64),
    documents: roundUp(most("documents"), 8),
    learned: roundUp(most("learned"), 64),
    length: most("length"),
    weighted: b.weighted || (a?.weighted ?? false),
  };
}

const holds = (room: BatchRoom, batch: BatchRoom): boolean =>
  batch.tokens <= room.tokens &&
  batch.documents <= room.documents &&
  batch.learned <= room.learned &&
  batch.length <= room.length &&
  (room.weighted || !batch.weighted);

interface Recording {
  room: BatchRoom;
  checkpointing: boolean;
  plan: Plan;
  inputs: Record<string, Tensor>;
  /** [loss sum, metric sums…] after each replay. */
  values: Tensor;
  names: string[];
}

function disposeRecording({ plan, inputs, values }: Recording): void {
  plan.dispose();
  for (const t of [values, ...Object.values(inputs)]) t.dispose();
}

/** Steps of one objective, replayed; gradients keep their place from the first step on. */
export class ReplayedExecution<M> implements Execution {
  readonly #model: M;
  readonly #replay: Replay<M>;
  readonly #optimizer: Optimizer;
  #micro: Recording | undefined;
  #update: { plan: Plan; norm: Tensor } | undefined;
  #gradientsKept = false;

  constructor(model: M, replay: Replay<M>, optimizer: Optimizer) {
    this.#model = model;
    this.#replay = replay;
    this.#optimizer = optimizer;
  }

  micro(batch: TokenBatch, context: ObjectiveContext): Queued {
    const size = roomOf(batch);
    let recording = this.#micro;
    if (!recording || !holds(recording.room, size) || recording.checkpointing !== context.checkpointing) {
      const room = widened(recording?.room, size);
      this.#disposeMicro();
      synchronize(); // replays under way hold the old recording's memory
      if (!this.#gradientsKept) this.#keepGradients(batch, room, context);
      this.#micro = recording = this.#record(batch, room, context);
    }
    for (const [name, array] of Object.entries(this.#replay.arrays(batch, recording.room)))
      recording.inputs[name]!.write(array);
    recording.plan.run();
    return { names: recording.names, values: read(recording.values), weight: batchWeight(batch) };
  }

  update(options: StepOptions): Promise<Float32Array> {
    this.#update ??= this.#recordUpdate();
    this.#optimizer.advance(options);
    this.#update.plan.run();
    return read(this.#update.norm);
  }

  discard(): void {
    if (!this.#gradientsKept) return;
    for (const { tensor: p } of this.#optimizer.parameters) native.fill(p.grad!, 0);
  }

  dispose(): void {
    this.#disposeMicro();
    this.#update?.plan.dispose();
    this.#update?.norm.dispose();
    this.#update = undefined;
  }

  /**
   * Gives every parameter a gradient that stays where it is: recordings add to it.
   * @throws {LlmError} the loss does not depend on a parameter; a recording that is never run shows it
   */
  #keepGradients(batch: TokenBatch, room: BatchRoom, context: ObjectiveContext): void {
    const { parameters } = this.#optimizer;
    this.#optimizer.zeroGrad();
    const trial = this.#record(batch, room, context);
    const missing = parameters.find((p) => !p.tensor.grad);
    this.#optimizer.zeroGrad();
    disposeRecording(trial);
    if (missing) throw new LlmError("INTERNAL", `[train] replay: the loss does not depend on ${missing.name}`);
    for (const { tensor: p } of parameters) p.grad = empty(p.shape, "f32", "gradients", p.device).keep();
    this.#gradientsKept = true;
    this.discard();
  }

  #record(batch: TokenBatch, room: BatchRoom, context: ObjectiveContext): Recording {
    const { device } = this.#optimizer.parameters[0]!.tensor;
    return onDevice(device, () => {
      this.#replay.prepare(this.#model, room);
      const inputs = Object.fromEntries(
        Object.entries(this.#replay.arrays(batch, room)).map(([name, array]) => [name, tensor(array).keep()]),
      );
      try {
        const { plan, result } = recordPlan(
          () => scope(() => lossAndGradients(this.#replay.loss(this.#model, inputs, room, context))),
          { gradients: true },
        );
        result.values.keep();
        return { room, checkpointing: context.checkpointing, plan, inputs, ...result };
      } catch (error) {
        for (const t of Object.values(inputs)) t.dispose();
        throw error;
      }
    });
  }

  #recordUpdate(): { plan: Plan; norm: Tensor } {
    const { plan, result } = recordPlan(() => {
      const norm = noGrad(() => this.#optimizer.update()).keep();
      this.discard();
      return norm;
    });
    return { plan, norm: result };
  }

  #disposeMicro(): void {
    if (this.#micro) disposeRecording(this.#micro);
    this.#micro = undefined;
  }
}
