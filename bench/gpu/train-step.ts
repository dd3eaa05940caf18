/**
 * Training steps on a GPU: packed random tokens, sequences of 2048.
 * usage: train-step --model 7b|1.5b|0.5b --sequences 4 --length 2048 --mode lora|fp8|qlora|full [--rank 64] [--checkpointing] [--layers n] [--steps 8] [--plan] [--profile] [--trace file]
 * --plan replays the step from a recording (one CUDA graph). Prints tokens/s (median step), peak memory, and with --profile the time of each op; --trace writes that step as a Chrome trace.
 */
import { writeFileSync } from "node:fs";
import {
  backward,
  chromeTrace,
  createAdamW,
  linearCrossEntropy,
  memory,
  nativeDoctor,
  onDevice,
  recordPlan,
  requireDevice,
  scope,
  startProfile,
  stopProfile,
  summarizeProfile,
  synchronize,
  tensor,
  type Tensor,
  trimMemory,
} from "@llm/core";
import { adapterParameters, applyLora, quantizeFp8, quantizeNf4 } from "@llm/lora";
import { createInputs, createModel, type DecoderInputs } from "@llm/models";
import { argument, flag, type ShapeName, shapes, tokenizer } from "./shapes.js";

const name = argument("model", "1.5b") as ShapeName;
const [sequences, length, steps] = [argument("sequences", "8"), argument("length", "2048"), argument("steps", "8")].map(
  Number,
) as [number, number, number];
const mode = argument("mode", "lora");
requireDevice("cuda");
console.log(`${nativeDoctor().cuda!.name}: ${name} ${mode} ${sequences} x ${length}`);
const config = {
  ...shapes[name],
  ...(flag("layers") ? { num_hidden_layers: Number(argument("layers", "")) } : {}),
};
let start = performance.now();
const base = createModel(config, tokenizer, { dtype: "bf16", device: "cuda", seed: 1 });
const frozen =
  mode === "qlora"
    ? quantizeNf4(base, { release: true })
    : mode === "fp8"
      ? quantizeFp8(base, { release: true })
      : base;
const model = mode === "full" ? base : applyLora(frozen, { rank: Number(argument("rank", "64")), alpha: 128 });
const parameters = mode === "full" ? model.decoder.trainable() : adapterParameters(model);
for (const { tensor: p } of parameters) p.requiresGrad = true;
const optimizer = createAdamW(parameters, { lr: 1e-5 });
synchronize();
trimMemory("cuda");
console.log(
  `model ${((performance.now() - start) / 1000).toFixed(1)} s, ${(memory("cuda").liveBytes / 2 ** 30).toFixed(2)} GiB`,
);

const T = sequences * length;
let seed = 1;
const random = (): number => (seed = (seed * 48271) % 2147483647);
const ids = Int32Array.from({ length: T }, () => random() % 150_000);
const labels = Int32Array.from(ids, (_, i) => ((i + 1) % length === 0 ? -100 : ids[i + 1]!));
const positions = Int32Array.from(ids, (_, i) => i % length);
const cu = Int32Array.from({ length: sequences + 1 }, (_, i) => i * length);

const limits = { gradScale: 1 / (T - sequences), maxGradNorm: 1 };
const options = { checkpointing: flag("checkpointing") };
/** The commands of a step, from inputs on the device. */
const step = (inputs: DecoderInputs, labels_T: Tensor): Tensor => {
  const hidden = model.decoder.forward(inputs, options);
  const { loss } = linearCrossEntropy(hidden, model.decoder.headFor(), labels_T);
  backward(loss);
  optimizer.update();
  optimizer.zeroGrad();
  return loss.detach();
};
const inputs = (): DecoderInputs => createInputs(ids, positions, cu);
const read = (loss: Tensor): Promise<number> => loss.item().finally(() => loss.dispose());

const eager = (): Promise<number> =>
  onDevice("cuda", () =>
    scope(() => {
      optimizer.advance(limits);
      return { loss: read(step(inputs(), tensor(labels)).keep()) };
    }),
  ).loss;

/** Batch and step numbers are written into the recording's inputs; the rest is one command. */
const replayed = (): (() => Promise<number>) =>
  onDevice("cuda", () => {
    const [given, labels_T] = [inputs(), tensor(labels)];
    model.decoder.rotary(given.length);
    const { plan, result } = recordPlan(() => scope(() => step(given, labels_T)), { gradients: true });
    console.log(`a step of ${plan.size} commands`);
    return () => {
      given.ids_T.write(ids);
      labels_T.write(labels);
      optimizer.advance(limits);
      plan.run();
      return result.item();
    };
  });
const queue = flag("plan") ? replayed() : eager;

const times: number[] = [];
const hostMs: number[] = [];
let losses: number[] = [];
let ahead: Promise<number> | undefined;
for (let i = 0; i < steps; i++) {
  start = performance.now();
  const next = queue();
  hostMs.push(performance.now() - start);
  if (ahead) losses.push(await ahead);
  ahead = next;
  times.push(performance.now());
}
losses.push(await ahead!);
times.push(performance.now());
const spans = times.slice(1).map((t, i) => t - times[i]!);
const timed = spans.slice(3).sort((a, b) => a - b);
const median = timed[Math.floor(timed.length / 2)]!;
const m = memory("cuda");
console.log(`losses ${losses.map((l) => (l / (T - sequences)).toFixed(4)).join(" ")}`);
console.log(
  `spans ms ${spans.map((s) => s.toFixed(1)).join(" ")}; host ms ${hostMs.map((s) => s.toFixed(1)).join(" ")}`,
);
console.log(
  `RESULT ${name} ${mode}${flag("checkpointing") ? " checkpointing" : ""} ${sequences}x${length}: ${((T / median) * 1000).toFixed(0)} tokens/s, ` +
    `${median.toFixed(1)} ms a step, peak ${(m.peakBytes / 2 ** 30).toFixed(1)} GiB live, ${((m.liveBytes + m.cachedBytes + nativeDoctor().cuda!.scratchBytes) / 2 ** 30).toFixed(1)} GiB mapped`,
);

if (flag("profile") || flag("trace")) {
  startProfile();
  await queue();
  const records = stopProfile();
  const summary = summarizeProfile(records);
  const total = summary.reduce((us, entry) => us + entry.totalUs, 0);
  const last = records.at(-1)!;
  console.log(
    `profile: ops ${(total / 1000).toFixed(1)} ms, wall ${((last.startUs + last.durationUs - records[0]!.startUs) / 1000).toFixed(1)} ms`,
  );
  for (const { op, calls, totalUs, share } of summary.slice(0, 24))
    console.log(
      `  ${op.padEnd(24)} ${(totalUs / 1000).toFixed(2).padStart(9)} ms  ${String(calls).padStart(5)} calls  ${(100 * share).toFixed(1)} %`,
    );
  if (flag("trace")) writeFileSync(argument("trace", ""), chromeTrace(records));
}
process.exit(0);
