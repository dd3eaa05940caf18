import { OptionsError } from "@llm/core";
import * as v from "valibot";

const unit = v.pipe(v.number(), v.minValue(0), v.maxValue(1));

/** How alpha goes over the steps of a run. */
export const AlphaSchedule = v.strictObject({
  /** Value at step 0, in [0, 1]. */
  from: unit,
  /** Value at `steps` and after it; not for "constant". */
  to: v.optional(unit),
  /** How it goes from one to the other. @default "linear" */
  kind: v.optional(v.picklist(["constant", "linear", "cosine"]), "linear"),
  /** Optimizer steps that it takes. Default the steps of the run. */
  steps: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
});
export type AlphaSchedule = v.InferInput<typeof AlphaSchedule>;

/**
 * Weight of the teacher's term by optimizer step: a pure function, so that a resumed run goes on as it would have. With
 * p = min(1, step / steps): linear from + (to − from) p; cosine to + (from − to) (1 + cos πp) / 2.
 * @throws {OptionsError} `to` missing or not used, or neither `steps` nor the run's length is known
 */
export function alphaSchedule(alpha: number | AlphaSchedule): (step: number, totalSteps: number) => number {
  if (typeof alpha === "number") return () => alpha;
  const { from, to, kind = "linear", steps } = alpha;
  if (kind === "constant") {
    if (to !== undefined || steps !== undefined)
      throw new OptionsError('[distillObjective] alpha: kind "constant" uses only `from`');
    return () => from;
  }
  if (to === undefined) throw new OptionsError(`[distillObjective] alpha: kind "${kind}" needs \`to\``);
  return (step, totalSteps) => {
    const length = steps ?? totalSteps;
    if (!(length >= 1))
      throw new OptionsError("[distillObjective] alpha: expected `steps`, because the length of the run is not known");
    const p = Math.min(1, Math.max(0, step / length));
    return kind === "linear" ? from + (to - from) * p : to + ((from - to) * (1 + Math.cos(Math.PI * p))) / 2;
  };
}
