/** Loss on held-out data. */
import { noGrad, OptionsError, scope } from "@llm/core";
import type * as v from "valibot";
import { checkBatch, openData } from "./batch-source.js";
import { batchWeight, type Objective } from "./objective.js";
import type { TrainEvaluationOptions } from "./options.js";
import type { EvaluationReport } from "./report.js";

/**
 * Σ lossSum / Σ weightSum over the batches, without gradients and without dropout.
 * @throws {OptionsError} data without end and no maxBatches; no labels at all
 */
export async function evaluateLoss<M>(
  model: M,
  objective: Objective<M>,
  options: v.InferOutput<typeof TrainEvaluationOptions>,
  run: { step: number; totalSteps: number; signal: AbortSignal | undefined },
): Promise<EvaluationReport> {
  const { data, batchSize, batchTokens, maxBatches = Infinity } = options;
  const opened = openData(data, {
    ...(batchSize === undefined ? {} : { batchSize }),
    ...(batchTokens === undefined ? {} : { batchTokens }),
  });
  if (opened.totalBatches === undefined && maxBatches === Infinity) {
    throw new OptionsError("[train] evaluation.maxBatches: needed, because the data does not say how long it is");
  }
  const iterator = opened.from(0);
  const context = { step: run.step, totalSteps: run.totalSteps, checkpointing: false, training: false };
  let lossSum = 0;
  let weight = 0;
  try {
    for (let i = 0; i < maxBatches; i++) {
      run.signal?.throwIfAborted();
      const item = await iterator.next();
      if (item.done) break;
      const batch = checkBatch(item.value);
      if (batchWeight(batch) === 0) continue;
      const result = noGrad(() => scope(() => objective(model, batch, context)));
      try {
        lossSum += await result.lossSum.item();
        weight += typeof result.weightSum === "number" ? result.weightSum : await result.weightSum.item();
      } finally {
        result.lossSum.dispose();
        if (typeof result.weightSum !== "number") result.weightSum.dispose();
        for (const t of Object.values(result.metrics ?? {})) t.dispose();
      }
    }
  } finally {
    await iterator.return?.();
  }
  if (!(weight > 0)) throw new OptionsError("[train] evaluation.data: expected at least one label, got none");
  const loss = lossSum / weight;
  return { loss, perplexity: Math.exp(loss), weight };
}
