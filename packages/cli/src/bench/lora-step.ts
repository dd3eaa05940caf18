/** A training step as users run it: LoRA on every linear of a Qwen2.5 shape with random weights (speed does not depend on them). */
import {
  backward,
  createAdamW,
  type Device,
  type DType,
  linearCrossEntropy,
  NumericError,
  onDevice,
  scope,
  tensor,
  trimMemory,
} from "@llm/core";
import { adapterParameters, applyLora } from "@llm/lora";
import { createModel, trainBpe } from "@llm/models";
import { type Timing, timingOf } from "./measure.js";

export interface StepBench {
  /** Key of the recorded numbers. */
  id: string;
  title: string;
  /** config.json of the model. */
  config: Readonly<Record<string, unknown>>;
  dtype: DType & ("f32" | "bf16");
  rank: number;
  /** Sequences of `length` tokens, packed. */
  sequences: number;
  length: number;
}

const qwen2 = {
  model_type: "qwen2",
  rms_norm_eps: 1e-6,
  rope_theta: 1_000_000,
  max_position_embeddings: 32_768,
  num_key_value_heads: 2,
  vocab_size: 151_936,
  tie_word_embeddings: true,
};

/** The step that is measured on a device. */
export const stepBench: Readonly<Record<Device, StepBench>> = {
  cpu: {
    id: "lora-0.5b-2",
    title: "LoRA step, 2 layers of the 0.5B shape, 512 tokens, r 16, f32",
    config: {
      ...qwen2,
      hidden_size: 896,
      intermediate_size: 4864,
      num_hidden_layers: 2,
      num_attention_heads: 14,
    },
    dtype: "f32",
    rank: 16,
    sequences: 1,
    length: 512,
  },
  cuda: {
    id: "lora-1.5b",
    title: "LoRA step, 1.5B shape, 8 × 2048 tokens, r 64, bf16",
    config: {
      ...qwen2,
      hidden_size: 1536,
      intermediate_size: 8960,
      num_hidden_layers: 28,
      num_attention_heads: 12,
    },
    dtype: "bf16",
    rank: 64,
    sequences: 8,
    length: 2048,
  },
};

/**
 * Times `steps` steps after `warmups` more. The next step is queued while one runs, as a trainer does it.
 * @throws {OutOfMemoryError} the model or the step does not fit
 * @throws {NumericError} the loss is not finite
 */
export async function measureStep(
  bench: StepBench,
  device: Device,
  { warmups, steps }: { warmups: number; steps: number },
  signal: AbortSignal,
): Promise<Timing> {
  const { sequences, length, rank, dtype } = bench;
  const T = sequences * length;
  const vocabulary = bench.config["vocab_size"] as number;
  const ids = Int32Array.from({ length: T }, (_, i) => (i * 7919) % vocabulary);
  const labels = Int32Array.from(ids, (_, i) => ((i + 1) % length === 0 ? -100 : ids[i + 1]!));
  const inputs = {
    ids_T: ids,
    positions_T: Int32Array.from(ids, (_, i) => i % length),
    cuSeqlens_B1: Int32Array.from({ length: sequences + 1 }, (_, i) => i * length),
  };
  const tokenizer = trainBpe(["a"], { vocabSize: 257, specialTokens: ["<|endoftext|>"], eosToken: "<|endoftext|>" });
  const base = createModel({ ...bench.config }, tokenizer, { dtype, device, seed: 1 });
  const model = applyLora(base, { rank });
  const optimizer = createAdamW(adapterParameters(model), { lr: 1e-5 });

  const queue = (): Promise<number> =>
    onDevice(device, () =>
      scope(() => {
        const { loss } = linearCrossEntropy(model.hidden(inputs), model.decoder.headFor(), tensor(labels));
        backward(loss);
        optimizer.step({ gradScale: 1 / (T - sequences), maxGradNorm: 1 });
        optimizer.zeroGrad();
        const kept = loss.detach().keep();
        return { loss: kept.item().finally(() => kept.dispose()) };
      }),
    ).loss;

  const times: number[] = [];
  let ahead: Promise<number> | undefined;
  try {
    let finishedAt = performance.now();
    for (let step = 0; step < warmups + steps; step++) {
      const running: Promise<number> = ahead ?? queue();
      ahead = step + 1 < warmups + steps ? queue() : undefined;
      const loss = await running;
      if (!Number.isFinite(loss)) throw new NumericError(`[llm bench] expected a finite loss, got ${loss}`, { step });
      const now = performance.now();
      if (step >= warmups) times.push(now - finishedAt);
      finishedAt = now;
      signal.throwIfAborted();
    }
    return timingOf(times);
  } finally {
    await ahead?.catch(() => undefined); // its memory is still in use
    optimizer.dispose();
    model.dispose();
    base.dispose();
    trimMemory(device);
  }
}
