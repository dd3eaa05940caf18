import {
  expectNoLeaks,
  fromTensor,
  type GradientCase,
  makeNumbers,
  type Numbers,
  numbers,
  references,
  runGradientCase,
  toTensor,
  type Values,
} from "@llm/testing";
import { describe, expect, it } from "vitest";
import {
  add,
  addRmsNorm,
  attention,
  backward,
  cast,
  checkpoint,
  concatColumns,
  concatRows,
  crossEntropy,
  dropout,
  embedding,
  gatherRows,
  Linear,
  linear,
  linearCrossEntropy,
  linearDistill,
  matmul,
  memory,
  mul,
  native,
  noGrad,
  reshape,
  rmsNorm,
  rope,
  scale,
  scope,
  silu,
  splitColumns,
  sub,
  sum,
  swiglu,
  synchronize,
  type Tensor,
  tensor,
} from "./index.js";

const ref = (op: string, inputs: (Numbers | null)[], ...attributes: number[]): Numbers[] =>
  references[op]!(
    inputs.map((x) => x && { ...x, data: x.data.slice() }),
    attributes,
  );
const ids = (...values: number[]): { shape: number[]; dtype: "i32"; values: Values; constant: true } => ({
  shape: [values.length],
  dtype: "i32",
  values,
  constant: true,
});
/** x wᵀ + bias in f64. */
const product = (x: Numbers, w: Numbers, bias: Numbers | null = null): Numbers =>
  ref("matmul", [x, w, bias], 0, 1, 0)[0]!;
const total = (...parts: (readonly [weight: number, x: Numbers])[]): Numbers =>
  numbers("f32", [1], [parts.reduce((s, [w, x]) => s + w * x.data.reduce((a, b) => a + b, 0), 0)]);
const columnsOf = (x: Numbers, from: number, to: number): Numbers => {
  const [rows, width] = x.shape as [number, number];
  return numbers(
    x.dtype,
    [rows, to - from],
    Array.from(
      { length: rows * (to - from) },
      (_, i) => x.data[Math.floor(i / (to - from)) * width + from + (i % (to - from))]!,
    ),
  );
};

const cases: GradientCase[] = [];
const push = (c: GradientCase): void => void cases.push(c);

for (const dtype of ["f32", "bf16"] as const) {
  const x = (shape: number[], values: Values = { normal: 1 }) => ({ shape, dtype, values });
  for (const [name, op] of [
    ["add", add],
    ["sub", sub],
    ["mul", mul],
  ] as const) {
    for (const shape of [[3, 4], [4], [1], [1, 1]])
      push({
        name: `${name} ${dtype} with [${shape.join()}]`,
        inputs: [x([3, 4]), x(shape)],
        run: ([a, b]) => op(a!, b!),
        reference: (i) => ref(name, i),
      });
    push({
      name: `${name} ${dtype} of three dims with a row`,
      inputs: [x([2, 3, 4]), x([4])],
      run: ([a, b]) => op(a!, b!),
      reference: (i) => ref(name, i),
    });
    push({
      name: `${name} ${dtype} of one leaf with itself`,
      inputs: [x([2, 3])],
      run: ([a]) => op(a!, a!),
      reference: ([a]) => ref(name, [a!, a!]),
    });
  }
  push({
    name: `scale ${dtype}`,
    inputs: [x([5])],
    run: ([a]) => scale(a!, -1.5),
    reference: (i) => ref("scale", i, -1.5),
  });
  push({ name: `cast ${dtype} to f32`, inputs: [x([5])], run: ([a]) => cast(a!, "f32"), reference: ([a]) => [a!] });
  push({
    name: `silu ${dtype}`,
    inputs: [x([7], { normal: 3 })],
    run: ([a]) => silu(a!),
    reference: (i) => ref("silu", i),
  });
  push({ name: `sum ${dtype}`, inputs: [x([3, 5])], run: ([a]) => sum(a!), reference: (i) => ref("sum", i) });
  push({
    name: `reshape ${dtype}`,
    inputs: [x([3, 4])],
    run: ([a]) => mul(reshape(a!, [2, -1]), reshape(a!, [2, 6])),
    reference: ([a]) =>
      ref("mul", [
        { ...a!, shape: [2, 6] },
        { ...a!, shape: [2, 6] },
      ]),
  });
  for (const use of [[0, 1, 2], [1], [0, 2]])
    push({
      name: `splitColumns ${dtype}, outputs ${use.join()}`,
      inputs: [x([3, 6])],
      run: ([a]) => splitColumns(scale(a!, 2), [1, 2, 3]),
      reference: ([a]) =>
        [
          [0, 1],
          [1, 3],
          [3, 6],
        ].map(([from, to]) => columnsOf(ref("scale", [a!], 2)[0]!, from!, to!)),
      use,
    });
  push({
    name: `concatRows ${dtype}`,
    inputs: [x([2, 3]), x([1, 3]), x([3, 3])],
    run: (i) => concatRows(i),
    reference: (i) => ref("concat_rows", i),
  });
  push({
    name: `concatColumns ${dtype}`,
    inputs: [x([2, 3]), x([2, 1])],
    run: (i) => concatColumns(i),
    reference: (i) => ref("concat_cols", i),
  });
  push({
    name: `gatherRows ${dtype}`,
    inputs: [x([4, 3]), ids(3, 0, 3, 1, 3)],
    run: ([a, r]) => gatherRows(a!, r!),
    reference: (i) => ref("gather_rows", i),
  });
  push({
    name: `gatherRows ${dtype} of three dims`,
    inputs: [x([3, 2, 2]), ids(2, 2)],
    run: ([a, r]) => gatherRows(a!, r!),
    reference: (i) => ref("gather_rows", i),
  });
  push({
    name: `embedding ${dtype}`,
    inputs: [ids(1, 4, 1, 0), x([5, 3])],
    run: ([i, w]) => embedding(i!, w!),
    reference: (i) => ref("embedding", i),
  });
  push({
    name: `rmsNorm ${dtype}`,
    inputs: [x([4, 6]), x([6])],
    run: ([a, w]) => rmsNorm(a!, w!, 1e-5),
    reference: (i) => [ref("rms_norm", i, 1e-5)[0]!],
  });
  push({
    name: `rmsNorm ${dtype} of heads`,
    inputs: [x([3, 2, 4]), x([4])],
    run: ([a, w]) => rmsNorm(a!, w!, 1e-5),
    reference: (i) => [ref("rms_norm", i, 1e-5)[0]!],
  });
  for (const use of [[0, 1], [0], [1]])
    push({
      name: `addRmsNorm ${dtype}, outputs ${use.join()}`,
      inputs: [x([3, 5]), x([3, 5]), x([5])],
      run: ([a, b, w]) => addRmsNorm(a!, b!, w!, 1e-5),
      reference: (i) => ref("add_rms_norm", i, 1e-5).slice(0, 2),
      use,
    });
  const table: Values = { uniform: [-1, 1] };
  push({
    name: `rope ${dtype}`,
    inputs: [
      x([3, 2, 4]),
      { shape: [5, 2], values: table, constant: true },
      { shape: [5, 2], values: table, constant: true },
      ids(4, 0, 2),
    ],
    run: ([a, c, s, p]) => rope(a!, c!, s!, p!),
    reference: (i) => ref("rope", i, 0),
  });
  push({
    name: `swiglu ${dtype}`,
    inputs: [x([3, 8], { normal: 2 })],
    run: ([a]) => swiglu(a!),
    reference: (i) => ref("swiglu", i),
  });
  push({
    name: `dropout ${dtype}`,
    inputs: [x([50])],
    run: ([a]) => dropout(a!, 0.4, 3, 7),
    reference: (i) => ref("dropout", i, 0.4, 3, 7),
  });
  for (const [causal, window] of [
    [true, 0],
    [true, 2],
    [false, 0],
  ] as const)
    push({
      name: `attention ${dtype} ${causal ? "causal" : "full"} window ${window}`,
      inputs: [x([5, 4, 6]), x([7, 2, 6]), x([7, 2, 6]), ids(0, 2, 2, 5), ids(0, 4, 4, 7)],
      run: ([q, k, v, a, b]) => attention(q!, k!, v!, a!, b!, { scale: 0.4, causal, window }),
      reference: (i) => [ref("attention", i, 0.4, causal ? 1 : 0, window)[0]!],
    });
  for (const transA of [false, true])
    for (const transB of [false, true])
      push({
        name: `matmul ${dtype}${transA ? " aᵀ" : ""}${transB ? " bᵀ" : ""}`,
        inputs: [x(transA ? [4, 3] : [3, 4]), x(transB ? [5, 4] : [4, 5])],
        run: ([a, b]) => matmul(a!, b!, { transA, transB }),
        reference: ([a, b]) => ref("matmul", [a!, b!, null], Number(transA), Number(transB), 0),
      });
  push({
    name: `matmul ${dtype} of results`,
    inputs: [x([3, 4]), x([4, 2])],
    run: ([a, b]) => matmul(silu(a!), silu(b!)),
    reference: ([a, b]) => ref("matmul", [ref("silu", [a!])[0]!, ref("silu", [b!])[0]!, null], 0, 0, 0),
  });
  push({
    name: `linear ${dtype} with bias`,
    inputs: [x([3, 4]), x([5, 4]), x([5])],
    run: ([a, w, b]) => linear(a!, { weight: w!, bias: b! }),
    reference: ([a, w, b]) => [product(a!, w!, b!)],
  });
  const lowRankReference = (
    y: Numbers,
    seen: Numbers,
    a: Numbers,
    b: Numbers,
    factor: number,
    offset: number,
  ): void => {
    const update = product(product(seen, a), b);
    const width = update.shape[1]!;
    update.data.forEach(
      (value, i) => (y.data[Math.floor(i / width) * y.shape[1]! + offset + (i % width)]! += factor * value),
    );
  };
  push({
    name: `linear ${dtype} with two adapters, one behind dropout`,
    inputs: [x([3, 4]), x([5, 4]), x([2, 4]), x([5, 2]), x([1, 4]), x([3, 1])],
    run: ([t, w, a1, b1, a2, b2]) =>
      linear(t!, { weight: w!, bias: null }, [
        { a: a1!, b: b1!, scale: 0.5, offset: 0 },
        { a: a2!, b: b2!, scale: 2, offset: 1, x: dropout(t!, 0.5, 1, 2) },
      ]),
    reference: ([t, w, a1, b1, a2, b2]) => {
      const y = product(t!, w!);
      lowRankReference(y, t!, a1!, b1!, 0.5, 0);
      lowRankReference(y, ref("dropout", [t!], 0.5, 1, 2)[0]!, a2!, b2!, 2, 1);
      return [y];
    },
  });
  const losses = { shape: [6, 5], dtype, values: { normal: 1 } };
  push({
    name: `crossEntropy ${dtype}`,
    inputs: [losses, ids(0, 4, -100, 2, 2, 1)],
    run: ([z, l]) => crossEntropy(z!, l!),
    reference: ([z, l]) => ref("cross_entropy", [z!, l!, null]),
  });
  for (const chunk of [6, 4, 1])
    push({
      name: `linearCrossEntropy ${dtype} by ${chunk} rows`,
      inputs: [
        x([6, 4]),
        x([5, 4]),
        ids(0, 4, -100, 2, 2, 1),
        { shape: [6], values: { uniform: [0, 2] }, constant: true },
      ],
      run: ([h, w, l, s]) => linearCrossEntropy(h!, w!, l!, s!, chunk).loss,
      reference: ([h, w, l, s]) => [total([1, ref("cross_entropy", [product(h!, w!), l!, s!])[0]!])],
    });
  for (const kind of ["forward", "reverse"] as const)
    push({
      name: `linearDistill ${dtype} ${kind}`,
      inputs: [
        x([6, 4]),
        x([5, 4]),
        { shape: [6, 3], dtype, constant: true },
        { shape: [5, 3], dtype, constant: true },
        ids(0, 4, -100, 2, 2, 1),
        { shape: [6], values: { uniform: [0, 2] }, constant: true },
      ],
      run: ([h, w, th, tw, l, s]) =>
        linearDistill(h!, w!, th!, tw!, l!, s!, { temperature: 2, alpha: 0.3, kind, chunk: 4 }).loss,
      reference: ([h, w, th, tw, l, s]) => {
        const [kl, ce] = ref(
          "distill_inplace",
          [product(h!, w!), product(th!, tw!), l!, s!],
          2,
          0.3,
          kind === "reverse" ? 1 : 0,
          0,
        ) as [Numbers, Numbers];
        return [total([0.3, kl], [0.7, ce])];
      },
    });
  push({
    name: `checkpoint ${dtype}`,
    inputs: [x([3, 4]), x([8, 4]), x([4, 4])],
    run: ([t, w, u]) =>
      checkpoint(
        (h) => linear(swiglu(linear(h, { weight: w!, bias: null })), { weight: u!, bias: null }),
        scale(t!, 0.5),
      ),
    reference: ([t, w, u]) => [product(ref("swiglu", [product(ref("scale", [t!], 0.5)[0]!, w!)])[0]!, u!)],
  });
  push({
    name: `a residual block ${dtype}: leaves and results used several times`,
    inputs: [x([4, 6]), x([6]), x([6, 6])],
    run: ([t, g, w]) => {
      const h = linear(rmsNorm(t!, g!, 1e-5), { weight: w!, bias: null });
      const [normed, residual] = addRmsNorm(h, t!, g!, 1e-5);
      return add(add(linear(normed, { weight: w!, bias: null }), residual), t!);
    },
    reference: ([t, g, w]) => {
      const h = product(ref("rms_norm", [t!, g!], 1e-5)[0]!, w!);
      const [normed, residual] = ref("add_rms_norm", [h, t!, g!], 1e-5) as [Numbers, Numbers];
      return ref("add", [ref("add", [product(normed, w!), residual])[0]!, t!]);
    },
  });
}

const leaf = (shape: number[], seed: string): Tensor => {
  const t = toTensor(makeNumbers("f32", shape, { normal: 1 }, seed));
  t.requiresGrad = true;
  return t;
};
const values = (t: Tensor): number[] => Array.from(t.dataSync() as Float32Array);

describe("gradients equal central differences of f64 references", () => {
  it.each(cases.map((c) => [c.name, c] as const))("%s", (_, c) => {
    const { ok, detail } = runGradientCase(c);
    expect(ok ? "" : detail).toBe("");
    expect(ok).toBe(true);
  });

  it.each(["w4", "q8", "nf4"] as const)(
    "a %s linear passes the gradient of its dequantized weight to x and to its adapter",
    (kind) => {
      const w = toTensor(makeNumbers("f32", [6, 8], { normal: 0.3 }, kind));
      const storage = (() => {
        if (kind === "w4") {
          const [q, scales, zeros] = native.quantizeW4(w, 4, 0);
          return { kind, q, scales, zeros, group: 4 };
        }
        if (kind === "q8") {
          const [q, scales] = native.quantizeQ8(w, 4);
          return { kind, q, scales, group: 4 };
        }
        const [q, absmax] = native.quantizeNf4(w, 16);
        return { kind, q, absmax, block: 16 };
      })();
      const base = new Linear({ name: "l", outFeatures: 6, inFeatures: 8, storage });
      const dense = fromTensor(base.dequantize("f32"));
      const result = runGradientCase({
        name: `quantized ${kind}`,
        inputs: [{ shape: [3, 8] }, { shape: [2, 8] }, { shape: [6, 2] }],
        run: ([x, a, b]) => base.with({ deltas: [{ kind: "lora", name: "d", a: a!, b: b!, scale: 0.5 }] }).forward(x!),
        reference: ([x, a, b]) => {
          const y = product(x!, dense);
          product(product(x!, a!), b!).data.forEach((value, i) => (y.data[i]! += 0.5 * value));
          return [y];
        },
      });
      expect(result).toMatchObject({ ok: true, tolerance: 2 ** -16 });
    },
  );
});

describe("backward", () => {
  it("adds into the gradients of a second backward, as one backward of the sum of both", () => {
    const [x, w] = [leaf([3, 4], "x"), leaf([5, 4], "w")];
    const loss = (factor: number): Tensor => sum(scale(linear(x, { weight: w, bias: null }), factor));
    backward(loss(1));
    const first = [values(x.grad!), values(w.grad!)];
    backward(loss(2));
    expect(values(x.grad!)).toEqual(first[0]!.map((g) => Math.fround(g + Math.fround(2 * g))));
    values(w.grad!).forEach((g, i) => expect(g).toBeCloseTo(3 * first[1]![i]!, 4));
  });

  it("is an error the second time: the graph was freed", () => {
    const x = leaf([3], "twice");
    const loss = sum(mul(x, x));
    backward(loss);
    const once = values(x.grad!);
    expect(() => backward(loss)).toThrow(/\[backward\] the graph behind sum was freed/);
    expect(values(x.grad!)).toEqual(once);
  });

  it("wants a gradient for roots of several elements, of the root's shape", () => {
    const y = scale(leaf([3], "root"), 2);
    expect(() => backward(y)).toThrow(/root of shape \[3\] needs its gradient given/);
    expect(() => backward(y, [tensor([1, 2])])).toThrow(/must have that shape, got \[2\]/);
    const x = leaf([3], "root");
    backward(scale(x, 2), [tensor([1, 2, 3])]);
    expect(values(x.grad!)).toEqual([2, 4, 6]);
  });

  it("takes leaves as roots, and several roots at once", () => {
    const x = leaf([2], "leaf root");
    backward([x, scale(x, 3)], [tensor([1, 1]), tensor([1, 2])]);
    expect(values(x.grad!)).toEqual([4, 7]);
  });

  it("keeps gradients in f32 for 16-bit leaves", () => {
    const x = tensor(Uint16Array.of(0x3f80, 0x4000), [2], "bf16");
    x.requiresGrad = true;
    for (let i = 0; i < 300; i++) backward(sum(x));
    expect(x.grad!.dtype).toBe("f32");
    expect(values(x.grad!)).toEqual([300, 300]);
  });

  it("records nothing under noGrad, nor for inputs without gradients", () => {
    const x = leaf([2], "nothing");
    expect(noGrad(() => scale(x, 2)).node).toBeUndefined();
    expect(scale(tensor([1, 2]), 2).node).toBeUndefined();
    expect(scale(x.detach(), 2).node).toBeUndefined();
  });

  it("leaves gradients of leaves that never meet the loss undefined", () => {
    const [x, other] = [leaf([2], "a"), leaf([2], "b")];
    scale(other, 2);
    backward(sum(x));
    expect(other.grad).toBeUndefined();
  });

  it("never lets two leaves share the memory of a gradient, nor with a gradient that the caller gave", () => {
    const [a, b, c, d] = [leaf([2, 3], "a"), leaf([2, 3], "b"), leaf([6], "c"), leaf([6], "d")];
    const given = tensor([1, 2, 3, 4, 5, 6], [6]);
    // add hands one gradient to both sides, reshape a view of it.
    const build = (): Tensor => add(add(reshape(a, [6]), reshape(b, [6])), add(c, d));
    backward(build(), [given]);
    backward(reshape(a, [6]), [given]);
    backward(c, [given]);
    expect(values(given)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(values(a.grad!)).toEqual([2, 4, 6, 8, 10, 12]);
    expect(values(b.grad!)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(values(c.grad!)).toEqual([2, 4, 6, 8, 10, 12]);
    expect(values(d.grad!)).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it("does not spoil a gradient on its way to an older node by adding to a leaf's in place", () => {
    const [a, w] = [leaf([6], "pending a"), leaf([6], "pending w")];
    const run = (through: (t: Tensor) => Tensor): number[][] => {
      const oldest = mul(w, w);
      const older = scale(a, 2);
      const y = add(add(through(a), older), oldest);
      backward(y, [tensor([1, 1, 1, 1, 1, 1])]);
      const grads = [values(a.grad!), values(w.grad!)];
      for (const t of [a, w]) {
        t.grad!.dispose();
        t.grad = undefined;
      }
      return grads;
    };
    // A view, a residual sum that hands out one gradient twice, and plain arithmetic.
    const plain = run((t) => scale(t, 1));
    expect(run((t) => reshape(reshape(t, [2, 3]), [6]))).toEqual(plain);
    expect(run((t) => concatRows([t]))).toEqual(plain);
    const weight = tensor([1, 1, 1, 1, 1, 1]);
    const [p, q] = [leaf([1, 6], "p"), leaf([1, 6], "q")];
    const shared = (): void => {
      const [, total] = addRmsNorm(p, scale(q, 1), weight, 1e-5);
      const [normed] = addRmsNorm(p, scale(q, 1), weight, 1e-5);
      backward(sum(add(add(normed, total), scale(p, 2))));
    };
    shared();
    const once = [values(p.grad!), values(q.grad!)];
    once[0]!.forEach((g, i) => expect(g - once[1]![i]!).toBeCloseTo(2, 5));
  });
});

describe("checkpoint", () => {
  it("gives the values and gradients of the plain call, bit for bit, and dropout the same mask in both passes", () => {
    const inputs = (): Tensor[] => [leaf([5, 8], "cx"), leaf([16, 8], "cw"), leaf([8, 8], "cu")];
    const block = (x: Tensor, w: Tensor, u: Tensor): Tensor =>
      add(dropout(linear(swiglu(linear(x, { weight: w, bias: null })), { weight: u, bias: null }), 0.3, 5, 1), x);
    const run = (checkpointed: boolean): number[][] => {
      const [x, w, u] = inputs() as [Tensor, Tensor, Tensor];
      const layer = (h: Tensor): Tensor => (checkpointed ? checkpoint((t) => block(t, w, u), h) : block(h, w, u));
      const y = layer(layer(x));
      backward(sum(mul(y, y)));
      return [y, x.grad!, w.grad!, u.grad!].map(values);
    };
    expect(run(true)).toEqual(run(false));
  });

  it("keeps less memory than the plain call until backward", () => {
    const weight = leaf([512, 256], "weight");
    const down = leaf([256, 256], "down");
    const used = (checkpointed: boolean): number => {
      let bytes = 0;
      scope(() => {
        let h = leaf([64, 256], "h");
        const block = (x: Tensor): Tensor =>
          linear(swiglu(linear(x, { weight, bias: null })), { weight: down, bias: null });
        synchronize();
        const before = memory().liveBytes;
        for (let i = 0; i < 4; i++) {
          const x = h;
          h = scope(() => (checkpointed ? checkpoint(block, x) : block(x)));
        }
        synchronize();
        bytes = memory().liveBytes - before;
        backward(sum(h));
      });
      return bytes;
    };
    expect(used(true)).toBeLessThan(0.4 * used(false));
  });
});

describe("outputs that are made again", () => {
  it("a block holds neither the norm's nor the gate's output between forward and backward", () => {
    const [T, H, F] = [64, 128, 256];
    const norm = leaf([H], "norm");
    const gateUp = leaf([2 * F, H], "gateUp");
    const down = leaf([H, F], "down");
    const first = leaf([T, H], "x");
    scope(() => {
      synchronize();
      const before = memory().liveBytes;
      const y = scope(() => {
        const normed = rmsNorm(first, norm, 1e-6);
        return linear(swiglu(linear(normed, { weight: gateUp, bias: null })), { weight: down, bias: null });
      });
      synchronize();
      // The gate's input, the result, and what the norm keeps of each row; T*H and T*F more would be the outputs themselves.
      const floats = (memory().liveBytes - before) / 4;
      expect(floats).toBeGreaterThanOrEqual(T * 2 * F + T * H);
      expect(floats).toBeLessThan(T * 2 * F + T * H + 0.5 * T * H);
      backward(sum(y));
    });
    for (const t of [norm, gateUp, down, first]) expect(t.grad).toBeDefined();
  });
});

describe("memory of graphs", () => {
  const w = leaf([8, 8], "graph");
  const forward = (): Tensor =>
    sum(silu(linear(toTensor(makeNumbers("f32", [4, 8], { normal: 1 }, "g")), { weight: w, bias: null })));
  const clear = (): void => {
    w.grad?.dispose();
    w.grad = undefined;
  };

  it("is freed when a scope closes over a graph that never ran backward", async () => {
    await expectNoLeaks(() => scope(() => void forward()));
  });

  it("is freed by backward, inside a scope and with the loss kept", async () => {
    await expectNoLeaks(() => {
      scope(() => backward(forward()));
      clear();
    });
    await expectNoLeaks(() => {
      const loss = scope(forward);
      backward(loss);
      loss.dispose();
      clear();
    });
  });

  it("is freed with checkpointed layers: nothing waits for the garbage collector", async () => {
    await expectNoLeaks(() => {
      scope(() => {
        let h = scale(toTensor(makeNumbers("f32", [4, 8], { normal: 1 }, "g")), 1);
        h.requiresGrad = true;
        for (let i = 0; i < 3; i++) h = checkpoint((x) => silu(linear(x, { weight: w, bias: null })), h);
        backward(sum(h));
      });
      clear();
    });
  });

  it("is freed when the forward or the backward pass throws", async () => {
    await expectNoLeaks(() =>
      expect(() =>
        scope(() => {
          forward();
          matmul(w, tensor([1, 2, 3], [1, 3]));
        }),
      ).toThrow(/must be \[8, any\]/),
    );
    await expectNoLeaks(() => {
      expect(() =>
        scope(() => {
          const y = scale(w, 2);
          const z = silu(y);
          (z.node!.saved[0] as Tensor).dispose();
          backward(sum(add(z, y)));
        }),
      ).toThrow(/disposed/);
      clear();
    });
  });

  it("outlives the scope of the forward pass", () => {
    const loss = scope(() => forward());
    backward(loss);
    expect(w.grad).toBeDefined();
    clear();
  });
});
