/** The step that random ops of a training forward pass draw for. One number per thread: masks need no state to be exact on resume. */
import { OptionsError, PlanError } from "./errors.js";
import { planRecording } from "./plan.js";

let current = 0;

/**
 * Sets the number that dropout masks depend on, besides their own seed and layer. A trainer calls it before the forward pass of each
 * micro-batch with a number that no other micro-batch of the run has, e.g.
 * ((optimizer step · micro-batches a step) + micro-batch) · data-parallel ranks + rank. The backward pass and activation checkpointing
 * see the same number as the forward pass they belong to, so the masks are the same; a resumed run sets the same numbers again.
 * @param step  whole number in [0, 2³⁷)
 * @throws {OptionsError} another number
 */
export function setRandomStep(step: number): void {
  if (!Number.isSafeInteger(step) || step < 0 || step >= 2 ** 37) {
    throw new OptionsError(`[setRandomStep] expected a whole number in [0, 2^37), got ${String(step)}`, { step });
  }
  current = step;
}

/**
 * The number set last by {@link setRandomStep}; 0 before the first call.
 * @throws {PlanError} a Plan is being recorded: every replay would draw the same
 */
export function randomStep(): number {
  if (planRecording())
    throw new PlanError("[plan] dropout cannot be recorded: every replay would drop the same elements");
  return current;
}
