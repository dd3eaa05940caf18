import { differentBits, expectNoLeaks, makeNumbers, tinyModel, toTensor } from "@llm/testing";
import { createInputs } from "@llm/models";
import { describe, expect, it } from "vitest";
import {
  backward,
  createAdamW,
  DisposedError,
  empty,
  linear,
  linearCrossEntropy,
  memory,
  mul,
  native,
  noGrad,
  PlanError,
  recordPlan,
  rmsNorm,
  scale,
  scope,
  silu,
  sum,
  type StepOptions,
  synchronize,
  tensor,
  type Tensor,
} from "./index.js";

const noise = (shape: number[], seed: string): Tensor => toTensor(makeNumbers("f32", shape, { normal: 1 }, seed));
const values = (t: Tensor): number[] => Array.from(t.dataSync() as Float32Array);

describe("a Plan", () => {
  it("replays a model's forward pass bit for bit, with inputs that change between replays", () => {
    const model = tinyModel({ modelType: "qwen3", layers: 2 });
    const length = 9;
    const batch = (seed: number): Int32Array => Int32Array.from({ length }, (_, i) => (i * 37 + seed * 11) % 256);
    const positions = Int32Array.from({ length }, (_, i) => i);
    const inputs = createInputs(batch(0), positions, Int32Array.of(0, length));
    const forward = (): Tensor => model.decoder.logits(model.decoder.forward(inputs));
    // Tables that grow on first use must exist before the recording.
    noGrad(() => scope(forward)).dispose();
    const { plan, result } = recordPlan(() => scope(forward));
    expect(plan.size).toBeGreaterThan(20);
    for (const seed of [1, 2, 1, 3]) {
      inputs.ids_T.write(batch(seed));
      plan.run();
      const eager = noGrad(() => scope(forward));
      expect(differentBits(result, eager)).toBe(0);
      eager.dispose();
    }
    plan.dispose();
    model.dispose();
  });

  it("replays whole training steps bit for bit: forward, backward and update, with batch, rate and clipping of each step", () => {
    const length = 12;
    const cu = Int32Array.of(0, 5, length);
    const positions = Int32Array.from({ length }, (_, t) => (t < 5 ? t : t - 5));
    const ids = (step: number): Int32Array => Int32Array.from({ length }, (_, t) => (t * 37 + step * 11) % 256);
    const labels = (step: number): Int32Array =>
      ids(step).map((x, t) => (t === 4 || t % 5 === step ? -100 : (x * 3) % 256));
    const numbers = (step: number): StepOptions => ({
      lr: 1e-2 / (step + 1),
      gradScale: 1 / (8 + step),
      maxGradNorm: step % 2,
    });
    const run = (planned: boolean): { losses: number[]; norms: number[]; weights: Tensor[]; free: () => void } => {
      const model = tinyModel({ modelType: "qwen3", layers: 2 });
      const parameters = model.decoder.trainable();
      for (const { tensor: p } of parameters) p.requiresGrad = true;
      const optimizer = createAdamW(parameters, { weightDecay: 0.1 });
      const inputs = createInputs(ids(0), positions, cu);
      const labels_T = tensor(labels(0));
      model.decoder.rotary(length);
      const step = (): { loss: Tensor; norm: Tensor } => {
        const { loss } = linearCrossEntropy(model.decoder.forward(inputs), model.decoder.headFor(), labels_T);
        backward(loss);
        const norm = optimizer.update();
        optimizer.zeroGrad();
        return { loss: loss.detach(), norm };
      };
      const recorded = planned ? recordPlan(() => scope(step), { gradients: true }) : undefined;
      const [losses, norms]: [number[], number[]] = [[], []];
      for (let i = 0; i < 5; i++) {
        inputs.ids_T.write(ids(i));
        labels_T.write(labels(i));
        optimizer.advance(numbers(i));
        recorded?.plan.run();
        const { loss, norm } = recorded?.result ?? scope(step);
        losses.push(loss.itemSync());
        norms.push(norm.itemSync());
      }
      const free = (): void => {
        recorded?.plan.dispose();
        optimizer.dispose();
        model.dispose();
      };
      return { losses, norms, weights: parameters.map((p) => p.tensor), free };
    };
    const [eager, replayed] = [run(false), run(true)];
    expect(replayed.losses).toEqual(eager.losses);
    expect(replayed.norms).toEqual(eager.norms);
    expect(new Set(eager.losses).size).toBe(5);
    eager.weights.forEach((w, i) => expect(differentBits(w, replayed.weights[i]!)).toBe(0));
    eager.free();
    replayed.free();
  });

  it("leaves no gradients behind when a recorded step fails", () => {
    const x = tensor([1, 2]);
    x.requiresGrad = true;
    const step = (): void => backward(sum(mul(x, x)));
    expect(() => recordPlan(() => scope(() => (step(), x.dataSync())), { gradients: true })).toThrow(PlanError);
    expect(x.grad).toBeUndefined();
    scope(step);
    expect(values(x.grad!)).toEqual([2, 4]);
    x.grad!.dispose();
    x.dispose();
  });

  it("runs nothing while it is recorded", () => {
    const x = tensor([1, 2]);
    const { plan } = recordPlan(() => native.axpy(x, x, 1));
    expect(values(x)).toEqual([1, 2]);
    plan.run();
    plan.run();
    expect(values(x)).toEqual([4, 8]);
    plan.dispose();
  });

  it("is an error where a value is read or written, and recording goes on being possible", () => {
    const x = tensor([1, 2]);
    const bodies: (() => unknown)[] = [
      () => x.dataSync(),
      () => x.write(new Float32Array(2)),
      () => native.silu(x).itemSync(),
      () => tensor([1]),
    ];
    for (const body of bodies) {
      expect(() => recordPlan(body)).toThrow(PlanError);
    }
    expect(() => recordPlan(() => recordPlan(() => 0))).toThrow(/being recorded on this thread already/);
    expect(() => recordPlan(() => Promise.resolve(1))).toThrow(/must be synchronous/);
    expect(values(silu(x))).toHaveLength(2);
    const { plan, result } = recordPlan(() => scale(x, 2));
    plan.run();
    expect(values(result)).toEqual([2, 4]);
    plan.dispose();
  });

  it("refuses to read asynchronously while another recording is under way", async () => {
    const x = tensor([1]);
    let reading: Promise<unknown> | undefined;
    const { plan } = recordPlan(() => {
      reading = x.data();
      reading.catch(() => undefined);
      return scale(x, 2);
    });
    await expect(reading).rejects.toThrow(PlanError);
    plan.dispose();
  });

  it("keeps what it reads alive, whatever happens to the tensors", () => {
    const { plan, result } = scope(() => {
      const w = noise([4, 4], "kept");
      return recordPlan(() => linear(tensorOf(w), { weight: w, bias: null }));
    });
    const others = Array.from({ length: 50 }, (_, i) => noise([4, 4], `other ${i}`));
    plan.run();
    const w = noise([4, 4], "kept");
    expect(values(result)).toEqual(values(linear(tensorOf(w), { weight: w, bias: null })));
    for (const t of others) t.dispose();
    plan.dispose();
  });

  it("reuses memory within itself: its peak is far below the sum of its results", () => {
    const x = noise([256, 256], "chain");
    const steps = 40;
    const chain = (): Tensor => {
      let y = scale(x, 0.5);
      for (let i = 1; i < steps; i++) {
        const before = y;
        y = scope(() => native.add(native.silu(before), x));
        before.dispose();
      }
      return y;
    };
    synchronize();
    const before = memory().liveBytes;
    const { plan, result } = recordPlan(() => scope(chain));
    const held = memory().liveBytes - before;
    expect(held).toBeGreaterThan(0);
    expect(held).toBeLessThanOrEqual(4 * 256 * 256 * 4);
    expect(plan.size).toBe(1 + 2 * (steps - 1));
    plan.run();
    const eager = noGrad(() => scope(chain));
    expect(differentBits(result, eager)).toBe(0);
    plan.dispose();
  });

  it("frees everything when disposed, many times over, also with replays still queued", async () => {
    const w = noise([64, 64], "many w");
    const x = noise([8, 64], "many x");
    const norm = noise([64], "many n");
    await expectNoLeaks(() => {
      for (let i = 0; i < 50; i++) {
        scope(() => {
          const { plan } = recordPlan(() => scope(() => rmsNorm(linear(x, { weight: w, bias: null }), norm, 1e-5)));
          for (let n = 0; n < 3; n++) plan.run();
          plan.dispose();
        });
      }
    });
    expect(memory().liveBytes).toBeGreaterThan(0);
  });

  it("cannot run, nor tell its size, after dispose()", () => {
    const x = tensor([1]);
    const { plan } = recordPlan(() => native.axpy(x, x, 1));
    plan.dispose();
    plan.dispose();
    expect(() => plan.run()).toThrow(DisposedError);
    expect(() => plan.size).toThrow(DisposedError);
  });

  it("reports bad data of a replay at the next read, naming the op", () => {
    const ids = tensor([0, 1], [2], "i32");
    const table = noise([3, 4], "table");
    const { plan, result } = recordPlan(() => native.embedding(ids, table));
    plan.run();
    expect(values(result)).toHaveLength(8);
    ids.write(Int32Array.of(0, 3));
    plan.run();
    expect(() => values(result)).toThrow(/^\[embedding\] token id outside/);
    ids.write(Int32Array.of(2, 2));
    plan.run();
    expect(values(result).slice(0, 4)).toEqual(values(table).slice(8));
    plan.dispose();
  });

  it("draws new random numbers only where a declared input says so", () => {
    const logits = noise([1, 50], "logits");
    const [params, seeds, steps] = [
      tensor([1, 0, 1, 0, 1, 0, 0, 0], [1, 8]),
      tensor([3, 4], [1, 2], "i32"),
      tensor([0], [1], "i32"),
    ];
    const { plan, result } = recordPlan(() => native.sample(logits, params, seeds, steps));
    const draw = (step: number): number => {
      steps.write(Int32Array.of(step));
      plan.run();
      return result[0].itemSync();
    };
    const first = Array.from({ length: 20 }, (_, i) => draw(i));
    expect(Array.from({ length: 20 }, (_, i) => draw(i))).toEqual(first);
    expect(new Set(first).size).toBeGreaterThan(5);
    plan.dispose();
  });

  it("leaves uninitialised memory alone: empty() inside is a buffer of the Plan", () => {
    const x = noise([4], "buffer");
    const { plan, result } = recordPlan(() => {
      const y = empty([4]);
      native.copy(y, x);
      return y;
    });
    plan.run();
    expect(differentBits(result, x)).toBe(0);
    plan.dispose();
  });
});

const tensorOf = (w: Tensor): Tensor => w.rows(0, 2);
