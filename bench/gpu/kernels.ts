/**
 * Kernels at the shapes of training, as users call them (time of many calls in a row): output projection with loss, attention, norms,
 * gate, optimizer, copy. usage: kernels
 */
import { backward, dtypes, empty, linearCrossEntropy, native, nativeDoctor, onDevice, randomNormal, requireDevice, scope, synchronize, type Tensor, tensor } from "@llm/core"; // prettier-ignore

requireDevice("cuda");
console.log(nativeDoctor().cuda!.name);
const bf16 = dtypes.indexOf("bf16");

/** Milliseconds of one call: median of five rounds. */
function time(calls: number, fn: () => void): number {
  const once = (): void => scope(fn);
  for (let i = 0; i < 3; i++) once();
  synchronize();
  const rounds: number[] = [];
  for (let round = 0; round < 5; round++) {
    const start = performance.now();
    for (let i = 0; i < calls; i++) once();
    synchronize();
    rounds.push((performance.now() - start) / calls);
  }
  return rounds.sort((a, b) => a - b)[2]!;
}

const random = (shape: number[], std = 1): Tensor => randomNormal(shape, { seed: shape[0]! + 1, dtype: "bf16", std });
const say = (what: string, ms: number, rate: string): void =>
  console.log(`RESULT ${what}: ${ms.toFixed(3)} ms, ${rate}`);
const tera = (amount: number, ms: number): string => (amount / ms / 1e9).toFixed(amount / ms / 1e9 < 20 ? 2 : 0);

onDevice("cuda", () => {
  const big = empty([2 ** 30], "bf16");
  const other = empty([2 ** 30], "bf16");
  native.fill(other, 1);
  const copyMs = time(10, () => native.copy(big, other));
  const copy = (2 * 2 ** 31) / copyMs;
  say("copy 2 GiB", copyMs, `${tera(2 * 2 ** 31, copyMs)} TB/s`);
  big.dispose();
  other.dispose();
  const bandwidth = (what: string, bytes: number, ms: number): void =>
    say(what, ms, `${tera(bytes, ms)} TB/s, ${((100 * bytes) / ms / copy).toFixed(0)} % of copy`);

  const [T, H, V] = [8192, 3584, 152064];
  {
    const x = random([T, H]);
    x.requiresGrad = true;
    const w = random([V, H], 0.02);
    const labels = tensor(Int32Array.from({ length: T }, (_, i) => (i * 7919) % V));
    const loss = time(3, () => {
      backward(linearCrossEntropy(x, w, labels).loss);
      x.grad?.dispose();
      x.grad = undefined;
    });
    const rows = 1024;
    const gemm = time(3, () => {
      for (let at = 0; at < T; at += rows)
        scope(() => {
          const logits = native.matmul(x.rows(at, at + rows), w, null, 0, 1, bf16);
          native.matmul(logits, w, null, 0, 0, bf16);
        });
    });
    say(
      "linear + cross-entropy, loss and dx, T 8192, H 3584, V 152064",
      loss,
      `${(loss / gemm).toFixed(3)} x its products (${gemm.toFixed(2)} ms)`,
    );
    for (const t of [x, w, labels]) t.dispose();
  }
  for (const [B, L] of [
    [4, 2048],
    [1, 8192],
  ] as const) {
    const [q, k, v] = [random([B * L, 28, 128]), random([B * L, 4, 128]), random([B * L, 4, 128])];
    const cu = tensor(Int32Array.from({ length: B + 1 }, (_, i) => i * L));
    const flops = 2 * B * L * L * 128 * 28;
    const forward = time(20, () => void native.attention(q, k, v, cu, cu, 128 ** -0.5, 1, 0));
    say(`attention forward ${B} x ${L}`, forward, `${tera(flops, forward)} TFLOP/s`);
    const [o, lse] = native.attention(q, k, v, cu, cu, 128 ** -0.5, 1, 0);
    const grad = random([B * L, 28, 128]);
    const back = time(10, () => void native.attentionBwd(grad, q, k, v, o, lse, cu, cu, 128 ** -0.5, 1, 0));
    say(`attention backward ${B} x ${L}`, back, `${tera(2.5 * flops, back)} TFLOP/s`);
    for (const t of [q, k, v, cu, o, lse, grad]) t.dispose();
  }
  {
    const [x, r, w] = [random([T, H]), random([T, H]), random([H])];
    const bytes = T * H * 2;
    bandwidth(
      "rms_norm [8192, 3584]",
      2 * bytes,
      time(50, () => void native.rmsNorm(x, w, 1e-6)),
    );
    bandwidth(
      "add_rms_norm",
      4 * bytes,
      time(50, () => void native.addRmsNorm(x, r, w, 1e-6)),
    );
    const [, rstd] = native.rmsNorm(x, w, 1e-6);
    bandwidth(
      "rms_norm_bwd with dsum",
      4 * bytes,
      time(50, () => void native.rmsNormBwd(r, x, w, rstd, r, 0)),
    );
    const gu = random([T, 2 * 18944]);
    const dy = random([T, 18944]);
    bandwidth(
      "swiglu [8192, 2 x 18944]",
      3 * T * 18944 * 2,
      time(20, () => void native.swiglu(gu)),
    );
    bandwidth(
      "swiglu_bwd",
      5 * T * 18944 * 2,
      time(20, () => void native.swigluBwd(dy, gu)),
    );
    for (const t of [x, r, w, rstd, gu, dy]) t.dispose();
  }
  {
    const n = 18944 * 3584;
    const p = random([18944, 3584]);
    const [g, m, v, master] = [0, 1, 2, 3].map(() => {
      const t = empty([18944, 3584], "f32");
      native.fill(t, 0.01);
      return t;
    }) as [Tensor, Tensor, Tensor, Tensor];
    const hyper = tensor(Float32Array.of(1e-4, 0.9, 0.999, 1e-8, 0, 0.1, 0.001));
    const one = tensor(Float32Array.of(1));
    bandwidth(
      "adamw, 67.9 M bf16 weights with f32 master",
      n * (4 + 8 + 8 + 8 + 2),
      time(20, () => native.adamw(hyper, one, p, g, m, v, master)),
    );
  }
});
process.exit(0);
