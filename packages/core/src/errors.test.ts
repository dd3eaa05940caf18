import { afterEach, describe, expect, it } from "vitest";
import {
  DisposedError,
  DTypeError,
  defaultDevice,
  empty,
  embedding,
  LlmError,
  matmul,
  memory,
  native,
  NumericError,
  OptionsError,
  OutOfMemoryError,
  rmsNorm,
  setExecution,
  setMemoryLimit,
  ShapeError,
  synchronize,
  tensor,
  type Tensor,
  trimMemory,
} from "./index.js";

const zeros = (shape: number[], dtype: "f32" | "bf16" | "i32" | "u8" = "f32"): Tensor => {
  const t = empty(shape, dtype);
  native.fill(t, 0);
  return t;
};

describe("shapes and dtypes that do not fit", () => {
  const f = (...shape: number[]): Tensor => zeros(shape);
  const i = (...shape: number[]): Tensor => zeros(shape, "i32");
  const wrongShapes: [string, () => unknown, RegExp][] = [
    [
      "add",
      () => native.add(f(2, 3), f(2)),
      /^\[add\] b must be of the shape of a, \[last dim of a\], or one element, got \[2\]$/,
    ],
    ["matmul", () => matmul(f(2, 3), f(4, 5)), /^\[matmul\] b must be \[3, any\], got \[4, 5\]$/],
    ["matmul bias", () => native.matmul(f(2, 3), f(3, 4), f(5), 0, 0, 0), /^\[matmul\] bias must be \[4\], got \[5\]$/],
    ["matmul of a vector", () => matmul(f(3), f(3, 4)), /^\[matmul\] a must be 2-dimensional, got \[3\]$/],
    ["rms_norm", () => rmsNorm(f(2, 8), f(4), 1e-5), /^\[rms_norm\] weight must be \[8\], got \[4\]$/],
    [
      "rope",
      () => native.rope(f(2, 2, 5), f(3, 2), f(3, 2), i(2), 0),
      /^\[rope\] x must be \[tokens, heads, even head width\]/,
    ],
    [
      "rope positions",
      () => native.rope(f(2, 2, 4), f(3, 2), f(3, 2), i(3), 0),
      /^\[rope\] positions must be \[2\], got \[3\]$/,
    ],
    [
      "attention heads",
      () => native.attention(f(2, 3, 4), f(2, 2, 4), f(2, 2, 4), i(2), i(2), 1, 1, 0),
      /^\[attention\] k must be of a head count that divides 3/,
    ],
    [
      "attention boundaries",
      () => native.attention(f(2, 2, 4), f(2, 2, 4), f(2, 2, 4), i(2), i(3), 1, 1, 0),
      /^\[attention\] cu_k must be \[2\] like cu_q, got \[3\]$/,
    ],
    [
      "concat_rows",
      () => native.concatRows([f(2, 3), f(2, 4)]),
      /^\[concat_rows\] x\[1\] must be equal to x\[0\] but for its first dim, got \[2, 4\]$/,
    ],
    ["concat_rows of nothing", () => native.concatRows([]), /^\[concat_rows\] needs at least one tensor$/],
    ["a required input", () => native.add(f(2), null as unknown as Tensor), /^\[add\] b is required$/],
    ["swiglu", () => native.swiglu(f(2, 3)), /^\[swiglu\] x must be \[tokens, even width\], got \[2, 3\]$/],
    [
      "cross_entropy",
      () => native.crossEntropy(f(3, 5), i(2), null),
      /^\[cross_entropy\] labels must be \[3\], got \[2\]$/,
    ],
    [
      "quantize_w4",
      () => native.quantizeW4(f(2, 3), 2, 0),
      /^\[quantize_w4\] w must be \[out features, even in features\], got \[2, 3\]$/,
    ],
    [
      "kv_append",
      () => native.kvAppend(f(1, 2, 2, 4), null, f(3, 2, 5), i(3)),
      /^\[kv_append\] cache must be \[any, any, 2, 5\], got \[1, 2, 2, 4\]$/,
    ],
    [
      "a strided tensor written in place",
      () => native.fill(f(4, 4).columns(0, 2), 1),
      /^\[fill\] x must be contiguous, got|^\[fill\] x must be contiguous$/,
    ],
    [
      "adamw",
      () => native.adamw(f(7), f(1), f(3), f(4), f(3), f(3), null),
      /^\[adamw\] g must be \[3\] like p, got \[4\]$/,
    ],
    [
      "adamw in 16 bits without a master",
      () => native.adamw(f(7), f(1), zeros([3], "bf16"), f(3), f(3), f(3), null),
      /^\[adamw\] master must be given when p is not f32, got nothing$/,
    ],
    ["empty", () => empty([2, -1]), /^\[tensor\] sizes must be integers in \[0, 2\^31\), got \[2, -1\]$/],
    ["seven dims", () => empty([1, 1, 1, 1, 1, 1, 1]), /^\[tensor\] at most 6 dimensions, got 7$/],
    ["a view outside", () => f(4).asStrided([5], [1], 0), /^\[view\] outside the tensor's memory$/],
    ["a view before the start", () => f(4).asStrided([1], [1], -1), /^\[view\] outside the tensor's memory$/],
    ["rows", () => f(4, 2).rows(3, 5), /^\[tensor.rows\] expected 0 <= start <= end <= 4, got 3, 5$/],
    [
      "write",
      () => f(4).write(new Float32Array(3)),
      /^\[tensor.write\] expected 16 bytes into a contiguous tensor, got 12$/,
    ],
  ];
  it.each(wrongShapes)("%s: a ShapeError that names the op and the input", (_, call, message) => {
    expect(call).toThrow(ShapeError);
    expect(call).toThrow(message);
  });

  const wrongTypes: [string, () => unknown, RegExp][] = [
    ["add", () => native.add(f(2), zeros([2], "bf16")), /^\[add\] b must be f32 like a, got bf16$/],
    ["silu", () => native.silu(i(2)), /^\[silu\] x must be f32, f16 or bf16, got i32$/],
    ["embedding", () => embedding(f(2), f(3, 4)), /^\[embedding\] ids must be i32, got f32$/],
    [
      "rms_norm",
      () => rmsNorm(f(2, 4), zeros([4], "bf16"), 1e-5),
      /^\[rms_norm\] weight must be f32 like x, got bf16$/,
    ],
    ["cast", () => native.cast(f(2), 3), /^\[cast\] the result's dtype must be f32, f16 or bf16$/],
    ["cast to nothing", () => native.cast(f(2), 99), /^\[cast\] dtype code 99/],
    ["copy", () => native.copy(f(2), i(2)), /^\[copy\] src must be f32 like dst, got i32$/],
    [
      "matmul result",
      () => native.matmul(f(2, 2), f(2, 2), null, 0, 0, 3),
      /^\[matmul\] the result's dtype must be f32, f16 or bf16$/,
    ],
    [
      "dequantize_w4 result",
      () => native.dequantizeW4(zeros([1, 2], "u8"), f(1, 1), zeros([1, 1], "u8"), 4, 3),
      /^\[dequantize_w4\] the result's dtype must be f32, f16 or bf16$/,
    ],
    ["fill_normal", () => native.fillNormal(i(4), 0, 1, 0, 0), /^\[fill_normal\] x must be f32, f16 or bf16, got i32$/],
    ["16-bit bits", () => tensor(new Uint16Array(2)), /pass the dtype$/],
  ];
  it.each(wrongTypes)("%s: a DTypeError that names the op and the input", (_, call, message) => {
    expect(call).toThrow(DTypeError);
    expect(call).toThrow(message);
  });

  const wrongOptions: [string, () => unknown, RegExp][] = [
    ["topk", () => native.topk(f(2, 3), 0), /^\[topk\] k must be in 1\.\.1024$/],
    ["dropout", () => native.dropout(f(2), 1, 0, 0), /^\[dropout\] p must be in \[0, 1\)$/],
    [
      "distill",
      () => native.distillInplace(f(1, 2), f(1, 2), i(1), null, 0, 0.5, 0, 0),
      /^\[distill_inplace\] temperature must be > 0$/,
    ],
    ["quantize_w4", () => native.quantizeW4(f(2, 4), 0.5, 0), /^\[quantize_w4\] group must be a positive integer$/],
    [
      "linear_w4",
      () => native.linearW4(f(2, 4), zeros([10], "u8"), null, 1, 4, 0, 0),
      /^\[linear_w4\] group must be a positive integer$/,
    ],
    [
      "linear_w4 of an odd width",
      () => native.linearW4(f(1, 33), zeros([1664], "u8"), null, 64, 33, 32, 0),
      /^\[linear_w4\] c must be even$/,
    ],
  ];
  it.each(wrongOptions)("%s: an OptionsError for an attribute out of range", (_, call, message) => {
    expect(call).toThrow(OptionsError);
    expect(call).toThrow(message);
  });

  it("leaves nothing behind: failed calls hold no memory", () => {
    synchronize();
    const [a, b] = [f(64, 64), f(32, 32)];
    const before = memory();
    for (let n = 0; n < 100; n++) expect(() => matmul(a, b)).toThrow(ShapeError);
    expect(memory().liveTensors).toBe(before.liveTensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
  });
});

describe("disposed tensors", () => {
  it("throw DisposedError in ops, views, reads and writes; dispose() twice is fine", () => {
    const x = tensor([1, 2, 3]);
    x.dispose();
    x.dispose();
    for (const use of [
      () => native.silu(x),
      () => x.rows(0, 1),
      () => x.dataSync(),
      () => x.write(new Float32Array(3)),
      () => x.alias(),
    ]) {
      expect(use).toThrow(DisposedError);
      expect(use).toThrow(/shape \[3\]/);
    }
  });

  it("stay disposed when another tensor takes their place: a stale handle is never somebody else's tensor", () => {
    const stale = tensor([1]);
    const { handle } = stale;
    const twin = Object.assign(Object.create(Object.getPrototypeOf(stale) as object) as Tensor, stale);
    stale.dispose();
    const others = Array.from({ length: 5000 }, () => tensor([7]));
    expect(others.some((t) => t.handle === handle)).toBe(false);
    expect(() => twin.dataSync()).toThrow(DisposedError);
    for (const t of others) t.dispose();
  });

  it("keep their memory while views and queued commands need it", () => {
    const base = tensor([1, 2, 3, 4], [2, 2]);
    const row = base.rows(1, 2);
    let y = base;
    for (let n = 0; n < 50; n++) {
      const next = native.scale(y, 1);
      y.dispose();
      y = next;
    }
    expect(Array.from(row.dataSync() as Float32Array)).toEqual([3, 4]);
    expect(Array.from(y.dataSync() as Float32Array)).toEqual([1, 2, 3, 4]);
  });
});

describe.each(["queued", "inline"] as const)("bad data, commands %s", (mode) => {
  afterEach(() => setExecution("queued"));
  const cases: [string, () => Tensor, RegExp][] = [
    [
      "embedding",
      () => native.embedding(tensor([0, 9], [2], "i32"), zeros([5, 2])),
      /^\[embedding\] token id outside the embedding table/,
    ],
    [
      "gather_rows",
      () => native.gatherRows(zeros([5, 2]), tensor([-1], [1], "i32")),
      /^\[gather_rows\] row index outside the tensor/,
    ],
    [
      "cross_entropy",
      () => native.crossEntropy(zeros([1, 4]), tensor([4], [1], "i32"), null),
      /^\[cross_entropy\] label outside the vocabulary/,
    ],
    [
      "rope",
      () => native.rope(zeros([1, 1, 4]), zeros([2, 2]), zeros([2, 2]), tensor([2], [1], "i32"), 0),
      /^\[rope\] position outside/,
    ],
    [
      "attention",
      () =>
        native.attention(
          zeros([2, 1, 4]),
          zeros([2, 1, 4]),
          zeros([2, 1, 4]),
          tensor([0, 3], [2], "i32"),
          tensor([0, 2], [2], "i32"),
          1,
          1,
          0,
        )[0],
      /^\[attention\] sequence boundaries/,
    ],
    [
      "sample",
      () =>
        native.sample(
          tensor([NaN, 0], [1, 2]),
          tensor([1, 0, 1, 0, 1, 0, 0, 0], [1, 8]),
          tensor([0, 0], [1, 2], "i32"),
          tensor([0], [1], "i32"),
        )[0],
      /^\[sample\] a logit is NaN/,
    ],
  ];

  it.each(cases)("%s: a NumericError that names the op, at the next read, once", (_, call, message) => {
    setExecution(mode);
    const fine = tensor([1]);
    const bad = call();
    let caught: unknown;
    try {
      bad.dataSync();
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(NumericError);
    expect((caught as Error).message).toMatch(message);
    expect(fine.itemSync()).toBe(1);
  });

  it("surfaces in data() and synchronize() too", async () => {
    setExecution(mode);
    await expect(native.embedding(tensor([7], [1], "i32"), zeros([5, 2])).data()).rejects.toThrow(NumericError);
    native.embedding(tensor([7], [1], "i32"), zeros([5, 2]));
    expect(() => synchronize()).toThrow(/\[embedding\]/);
    synchronize();
  });
});

describe("errors and reads in order", () => {
  it("an error fails the read behind it, not the one before", async () => {
    const good = tensor([1, 2]).data();
    const bad = native.embedding(tensor([7], [1], "i32"), zeros([5, 2])).data();
    const after = tensor([3]).data();
    const [first, second, third] = await Promise.allSettled([good, bad, after]);
    expect(first).toMatchObject({ status: "fulfilled", value: Float32Array.of(1, 2) });
    expect(second).toMatchObject({ status: "rejected", reason: expect.any(NumericError) });
    expect(third).toMatchObject({ status: "fulfilled", value: Float32Array.of(3) });
  });
});

describe("sizes", () => {
  it("of 2^31 and more, or no integers, are refused", () => {
    for (const size of [2 ** 31, 2 ** 32 + 4, 1.5, -1, Number.NaN])
      expect(() => empty([size], "u8")).toThrow(ShapeError);
  });

  it("rows of more than 2^31 elements can be viewed", () => {
    const lazily = empty([2, 65_536, 32_769], "u8");
    expect(lazily.rows(1, 2).shape).toEqual([1, 65_536, 32_769]);
    lazily.dispose();
  });

  it("a view whose extent does not fit 64 bits is outside of its memory", () => {
    const t = tensor([1, 2, 3]);
    expect(() => t.asStrided([2 ** 30, 2 ** 30], [2 ** 31 - 1, 2 ** 31 - 1], 0)).toThrow(ShapeError);
  });
});

describe("out of memory", () => {
  afterEach(() => setMemoryLimit(0));

  it("is typed, names what holds the memory and what to turn down, and is recoverable", () => {
    synchronize();
    trimMemory();
    const weights = empty([1 << 20], "f32", "weights");
    setMemoryLimit(memory().liveBytes + (8 << 20));
    const failed = (): Tensor => empty([16 << 20], "f32", "kv");
    expect(failed).toThrow(OutOfMemoryError);
    expect(failed).toThrow(
      /^\[memory\] cannot allocate 64\.0 MiB on (cpu|cuda): .* in use \(.*weights \d+\.\d MiB.*\), limit .*; turn down/,
    );
    const small = empty([1 << 18], "f32");
    native.fill(small, 2);
    expect(small.dataSync()[5]).toBe(2);
    // An op whose result does not fit fails at the call, and holds nothing.
    const wide = tensor(new Float32Array(4096), [4096, 1]);
    const before = memory();
    expect(() => matmul(wide, wide, { transB: true })).toThrow(OutOfMemoryError);
    expect(memory().liveTensors).toBe(before.liveTensors);
    expect(memory().liveBytes).toBe(before.liveBytes);
    setMemoryLimit(0);
    expect(matmul(wide, wide, { transB: true }).shape).toEqual([4096, 4096]);
    weights.dispose();
  });

  it("is an LlmError with its code", () => {
    // A cached block of the size is at hand: the limit holds all the same.
    empty([1 << 20]).dispose();
    setMemoryLimit(1);
    let caught: unknown;
    try {
      empty([1 << 20]);
    } catch (error) {
      caught = error;
    }
    expect(LlmError.isInstance(caught, "OUT_OF_MEMORY")).toBe(true);
    expect(LlmError.isInstance(caught, "SHAPE")).toBe(false);
  });

  it("also meets sizes that no machine has", () => {
    const huge = 2 ** 31 - 1;
    expect(() => empty([huge, huge, huge])).toThrow(
      /^\[tensor\] a tensor of shape \[2147483647, 2147483647, 2147483647\] is larger than any memory$/,
    );
    expect(() => empty([huge, huge])).toThrow(OutOfMemoryError);
    // Views that repeat one element have any size, up to a point; their copies do not.
    expect(() => tensor([1]).asStrided([huge, huge, huge], [0, 0, 0], 0)).toThrow(
      /^\[view\] more than 2\^60 elements$/,
    );
    const wide = tensor([1]).asStrided([huge, 1 << 20], [0, 0], 0);
    expect(() => native.contiguous(wide)).toThrow(OutOfMemoryError);
  });

  it("counts bytes by tag, the peak, and gives cached blocks back", () => {
    synchronize();
    const before = memory();
    const kv = empty([1 << 18], "f32", "kv");
    expect(memory().byTag.kv - before.byTag.kv).toBe(1 << 20);
    expect(memory().peakBytes).toBeGreaterThanOrEqual(memory().liveBytes);
    kv.dispose();
    synchronize();
    expect(memory().byTag.kv).toBe(before.byTag.kv);
    const { cachedBytes } = memory();
    expect(cachedBytes).toBeGreaterThan(0);
    trimMemory();
    // A GPU's pages go back whole, when nothing on them is in use.
    if (defaultDevice() === "cpu") expect(memory().cachedBytes).toBe(0);
    else expect(memory().cachedBytes).toBeLessThanOrEqual(cachedBytes);
  });
});
