import { DisposedError, LlmError } from "./errors.js";
import { noGrad, undoGradients } from "./autograd.js";
import { nativePlan } from "./native.js";

const abandoned = new FinalizationRegistry<number>((id) => nativePlan.free(id));

/**
 * A recorded list of commands with fixed buffers, replayed without JavaScript (a CUDA graph on a GPU). Values that change between
 * replays are tensors made before the recording and overwritten with `write()`.
 */
export class Plan {
  private id: number;

  constructor(id: number) {
    this.id = id;
    abandoned.register(this, id, this);
  }

  /** Number of commands. */
  get size(): number {
    if (this.id === 0) throw new DisposedError("[plan] the Plan was disposed");
    return nativePlan.size(this.id);
  }

  /** Queues one replay. */
  run(): void {
    if (this.id === 0) throw new DisposedError("[plan] the Plan was disposed");
    nativePlan.replay(this.id);
  }

  dispose(): void {
    if (this.id === 0) return;
    abandoned.unregister(this);
    nativePlan.free(this.id);
    this.id = 0;
  }
}

let underWay = false;
/** True while `recordPlan` runs its function. */
export const planRecording = (): boolean => underWay;

/** Options of {@link recordPlan}. */
export interface RecordOptions {
  /** Record gradients in `fn`, which may then call `backward()` and an optimizer's `update()`. @default false */
  gradients?: boolean;
}

/**
 * Records the ops of `fn` instead of running them. Tensors in the result stay readable after each `run()`; do not dispose them before
 * the Plan. What the recording frees, later ops of it use again, so a whole training step needs no more memory than one that runs at once.
 * @throws {PlanError} `fn` reads or writes a value
 */
export function recordPlan<T>(fn: () => T, { gradients = false }: RecordOptions = {}): { plan: Plan; result: T } {
  const id = nativePlan.record();
  let result: T;
  underWay = true;
  try {
    result = gradients ? undoGradients(fn) : noGrad(fn);
    if (typeof (result as { then?: unknown } | null | undefined)?.then === "function") {
      throw new LlmError("PLAN", "[plan] the recorded function must be synchronous");
    }
  } catch (error) {
    nativePlan.stop();
    nativePlan.free(id);
    throw error;
  } finally {
    underWay = false;
  }
  nativePlan.stop();
  return { plan: new Plan(id), result };
}
