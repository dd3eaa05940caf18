/** Steps that are recorded once and replayed: the host only writes a batch's arrays and the step's numbers (one CUDA graph a micro-batch). */
import {
  empty,
  native,
  noGrad,
  onDevice,
  type Optimizer,
  type Plan,
  recordPlan,
  scope,
  type StepOptions,
  type Tensor,
  tensor,
} from "@llm/core";
import type { TokenBatch } from "@llm/models";
import { batchWeight, type BatchRoom, type ObjectiveContext, type Replay, roomOf } from "./objective.js";
import { type Execution, lossAndGradients, type Queued, read } from "./execution.js";

const roundUp = (n: number, to: number): number => Math.ceil(n / to) * to;

/** The room of both, with some to spare, so that slowly growing batches are not recorded again and again. */
function widened(a: BatchRoom | undefined, b: BatchRoom): BatchRoom {
  const most = (key: "tokens" | "documents" | "learned" | "length"): number => Math.max(a?.[key] ?? 0, b[key]);
  return {
    tokens: roundUp(most("tokens"), 64),
    documents: roundUp(most("documents"), 8),
    learned: roundUp(most("learned"), 64),
    length: 2 ** Math.ceil(Math.log2(most("length"))),
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

export class ReplayedExecution<M> implements Execution {
  readonly #model: M;
  readonly #replay: Replay<M>;
  readonly #optimizer: Optimizer;
  #micro: Recording | undefined;
  #update: { plan: Plan; norm: Tensor } | undefined;

  /** Gradients stay where they are from now on: recordings add to them. */
  constructor(model: M, replay: Replay<M>, optimizer: Optimizer) {
    this.#model = model;
    this.#replay = replay;
    this.#optimizer = optimizer;
    for (const { tensor: p } of optimizer.parameters) {
      p.grad?.dispose();
      p.grad = empty(p.shape, "f32", "gradients", p.device).keep();
    }
    this.discard();
  }

  micro(batch: TokenBatch, context: ObjectiveContext): Queued {
    const size = roomOf(batch);
    let recording = this.#micro;
    if (!recording || !holds(recording.room, size) || recording.checkpointing !== context.checkpointing) {
      this.#disposeMicro();
      this.#micro = recording = this.#record(batch, widened(recording?.room, size), context);
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
    for (const { tensor: p } of this.#optimizer.parameters) native.fill(p.grad!, 0);
  }

  dispose(): void {
    this.#disposeMicro();
    this.#update?.plan.dispose();
    this.#update?.norm.dispose();
    this.#update = undefined;
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
    if (!this.#micro) return;
    const { plan, inputs, values } = this.#micro;
    plan.dispose();
    for (const t of [values, ...Object.values(inputs)]) t.dispose();
    this.#micro = undefined;
  }
}
