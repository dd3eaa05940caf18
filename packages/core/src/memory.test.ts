import { differentBits, expectNoLeaks, makeNumbers, toTensor } from "@llm/testing";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import {
  backward,
  createAdamW,
  createSgd,
  embedding,
  keep,
  linear,
  linearCrossEntropy,
  matmul,
  memory,
  native,
  recordPlan,
  rmsNorm,
  scale,
  scope,
  swiglu,
  synchronize,
  tensor,
  type Tensor,
} from "./index.js";

const noise = (shape: number[], seed: string, deviation = 0.1): Tensor =>
  toTensor(makeNumbers("f32", shape, { normal: deviation }, seed));

describe("scope", () => {
  it("frees what is made inside but for the result and what is kept", () => {
    synchronize();
    const before = memory().liveTensors;
    let kept: Tensor | undefined;
    const result = scope(() => {
      const a = tensor([1]);
      kept = keep(scale(a, 2));
      return { list: [scale(a, 3)], label: "x" };
    });
    expect(memory().liveTensors - before).toBe(2);
    expect([kept!.itemSync(), result.list[0]!.itemSync()]).toEqual([2, 3]);
    kept!.dispose();
    result.list[0]!.dispose();
    expect(memory().liveTensors).toBe(before);
  });

  it("hands its result to the scope around it", () => {
    const before = memory().liveTensors;
    scope(() => {
      scope(() => tensor([1]));
      expect(memory().liveTensors - before).toBe(1);
    });
    expect(memory().liveTensors).toBe(before);
  });

  it("frees everything when the function throws or returns a promise", () => {
    const before = memory().liveTensors;
    expect(() =>
      scope(() => {
        tensor([1]);
        throw new Error("stop");
      }),
    ).toThrow("stop");
    expect(() => scope(async () => tensor([1]))).toThrow(/returned a Promise/);
    expect(memory().liveTensors).toBe(before);
  });
});

describe("expectNoLeaks", () => {
  it("passes work that frees everything and names what the other left behind", async () => {
    const left: Tensor[] = [];
    await expectNoLeaks(() => scope(() => void tensor([1, 2])));
    await expect(expectNoLeaks(() => void left.push(tensor([1, 2])))).rejects.toThrow(
      /left 1 tensors, other \+8 bytes behind/,
    );
    for (const t of left) t.dispose();
  });
});

describe("memory over many steps", () => {
  it("holds the same number of tensors and bytes after each of 1,000 training steps", () => {
    const [vocabulary, width, tokens] = [17, 8, 6];
    const parameters = {
      embed: noise([vocabulary, width], "e"),
      norm: noise([width], "n", 1),
      up: noise([4 * width, width], "u"),
      down: noise([width, 2 * width], "d"),
    };
    for (const t of Object.values(parameters)) t.requiresGrad = true;
    const optimizer = createAdamW(
      Object.entries(parameters).map(([name, t]) => ({ name, tensor: t })),
      { lr: 1e-3, weightDecay: 0.1 },
    );
    const ids = tensor(Int32Array.from({ length: tokens }, (_, i) => (i * 5) % vocabulary));
    const labels = tensor(Int32Array.from({ length: tokens }, (_, i) => (i * 5 + 5) % vocabulary));
    const step = (): number =>
      scope(() => {
        const { embed, norm, up, down } = parameters;
        const x = embedding(ids, embed);
        const h = linear(swiglu(linear(rmsNorm(x, norm, 1e-5), { weight: up, bias: null })), {
          weight: down,
          bias: null,
        });
        const { loss } = linearCrossEntropy(h, embed, labels);
        backward(loss);
        optimizer.step({ maxGradNorm: 1 });
        optimizer.zeroGrad();
        return loss.itemSync();
      });
    const first = step();
    for (let i = 0; i < 20; i++) step();
    synchronize();
    const before = memory();
    let last = 0;
    for (let i = 0; i < 1000; i++) last = step();
    synchronize();
    const after = memory();
    expect(after.liveTensors).toBe(before.liveTensors);
    expect(after.byTag).toEqual(before.byTag);
    expect(after.peakBytes).toBe(before.peakBytes);
    expect(last).toBeLessThan(first / 4);
    optimizer.dispose();
  });

  it("does not grow while a host that never waits runs ahead of the queue", () => {
    const w = noise([128, 128], "ahead");
    synchronize();
    const before = memory().liveBytes;
    let y = scale(w, 1);
    let most = 0;
    for (let i = 0; i < 400; i++) {
      const next = matmul(y, w);
      y.dispose();
      y = next;
      most = Math.max(most, memory().liveBytes - before);
    }
    expect(most).toBeLessThanOrEqual(3 * 128 * 128 * 4);
    y.dispose();
  });

  it("frees tensors and Plans that nobody holds any more when the garbage collector finds them", async () => {
    setFlagsFromString("--expose-gc");
    (globalThis as { gc?: () => void }).gc = runInNewContext("gc") as () => void;
    const w = noise([32, 32], "collected");
    await expectNoLeaks(() => {
      for (let i = 0; i < 20; i++) {
        matmul(w, w);
        recordPlan(() => matmul(w, w)).plan.run();
      }
    });
  });
});

describe("optimizers", () => {
  it("follow f64 arithmetic over ten steps, clipped and scaled, on f32 and on bf16 with a master", () => {
    for (const kind of ["adamw", "sgd"] as const) {
      const start = makeNumbers("bf16", [6, 4], { normal: 1 }, "p");
      const target = makeNumbers("f32", [6, 4], { normal: 1 }, "t");
      for (const dtype of ["f32", "bf16"] as const) {
        const p = toTensor({ ...start, dtype });
        p.requiresGrad = true;
        const list = [{ name: "p", tensor: p }];
        const [lr, decay] = [0.05, 0.1];
        const optimizer =
          kind === "adamw"
            ? createAdamW(list, { lr, weightDecay: decay })
            : createSgd(list, { lr, momentum: 0.9, weightDecay: decay });
        // In f64: master weights, moments.
        const [w, m, v] = [Array.from(start.data), new Array<number>(24).fill(0), new Array<number>(24).fill(0)];
        for (let t = 1; t <= 10; t++) {
          const seen = Array.from(p.dataSync() as Float32Array);
          const g = seen.map((x, i) => Math.fround(x - target.data[i]!));
          p.grad = tensor(Float32Array.from(g), [6, 4]);
          const norm = 0.5 * Math.hypot(...g);
          const reported = scope(() => optimizer.step({ gradScale: 0.5, maxGradNorm: 1 }).itemSync());
          expect(reported).toBeCloseTo(2 * norm, 4);
          optimizer.zeroGrad();
          const factor = 0.5 * Math.min(1, 1 / (norm + 1e-6));
          g.forEach((raw, i) => {
            const gradient = raw * factor;
            if (kind === "adamw") {
              m[i] = 0.9 * m[i]! + 0.1 * gradient;
              v[i] = 0.999 * v[i]! + 0.001 * gradient ** 2;
              w[i] =
                w[i]! * (1 - lr * decay) -
                (lr * (m[i]! / (1 - 0.9 ** t))) / (Math.sqrt(v[i]! / (1 - 0.999 ** t)) + 1e-8);
            } else {
              m[i] = 0.9 * m[i]! + gradient + decay * w[i]!;
              w[i] = w[i]! - lr * m[i]!;
            }
          });
        }
        const master = optimizer.state().find(({ name }) => name === "p.master")?.tensor ?? p;
        (master.dataSync() as Float32Array).forEach((x, i) => expect(x).toBeCloseTo(w[i]!, 5));
        if (master !== p) expect(differentBits(p, native.cast(master, 2))).toBe(0);
        optimizer.dispose();
      }
    }
  });
});
