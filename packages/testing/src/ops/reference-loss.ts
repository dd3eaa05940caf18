/** References: losses over rows of logits, and optimizer steps. V vocabulary. */
import { argmaxOf, logSumExp, rowOf } from "./reference-elementwise.js";
import { numbers } from "./numbers.js";
import type { Reference } from "./reference.js";

const ignored = -100;

const probability = (logit: number, lse: number): number => (logit === -Infinity ? 0 : Math.exp(logit - lse));

/** Weighted cross-entropy of each row; `change` turns the logits into the gradient. */
const crossEntropy =
  (change: boolean): Reference =>
  ([logits, labels, weights]) => {
    const [rows] = logits!.shape as [number, number];
    const nll = numbers("f32", [rows]);
    for (let r = 0; r < rows; r++) {
      const row = rowOf(logits!, r);
      const [label, w] = [labels!.data[r]!, weights?.data[r] ?? 1];
      const lse = logSumExp(row);
      const off = label === ignored || w === 0;
      if (!off) nll.data[r] = row[label] === -Infinity ? w * Infinity : w * (lse - row[label]!);
      if (!change) continue;
      row.forEach(
        (z, c) => (row[c] = off || lse === -Infinity ? 0 : w * (probability(z, lse) - (c === label ? 1 : 0))),
      );
    }
    return [nll];
  };

/** Divergence between two distributions given as log-probabilities, and its gradient with respect to the first one's logits (temperature 1). */
function divergence(student: number[], teacher: number[], reverse: boolean): { value: number; gradient: number[] } {
  let value = 0;
  student.forEach((q, c) => {
    const p = teacher[c]!;
    if (reverse && q > -Infinity) value += Math.exp(q) * (q - p);
    if (!reverse && p > -Infinity) value += Math.exp(p) * (p - q);
  });
  const gradient = student.map((q, c) => {
    if (!reverse) return Math.exp(q) - Math.exp(teacher[c]!);
    return q === -Infinity ? 0 : Math.exp(q) * (q - teacher[c]! - value);
  });
  return { value, gradient };
}

export const losses: Record<string, Reference> = {
  cross_entropy: crossEntropy(false),
  cross_entropy_inplace: crossEntropy(true),
  distill_inplace: ([student, teacher, labels, weights], [temperature, alpha, kind, hard]) => {
    const [rows, cols] = student!.shape as [number, number];
    const common = Math.min(cols, teacher!.shape[1]!);
    const [kl, ce] = [numbers("f32", [rows]), numbers("f32", [rows])];
    const T = temperature!;
    for (let r = 0; r < rows; r++) {
      const z = rowOf(student!, r);
      const zt = rowOf(teacher!, r).subarray(0, common);
      const w = weights?.data[r] ?? 1;
      if (labels!.data[r] === ignored || w === 0) {
        z.fill(0);
        continue;
      }
      const label = hard ? argmaxOf(zt) : labels!.data[r]!;
      const soften = (row: Float64Array): number[] => {
        const lse = logSumExp(row, T);
        return Array.from(row, (x) => x / T - lse);
      };
      const { value, gradient } = divergence(soften(z.subarray(0, common)), soften(zt), kind === 1);
      const lse = logSumExp(z);
      kl.data[r] = w * T * T * value;
      ce.data[r] = w * (lse - z[label]!);
      z.forEach(
        (x, c) =>
          (z[c] = w * (alpha! * T * (gradient[c] ?? 0) + (1 - alpha!) * (probability(x, lse) - (c === label ? 1 : 0)))),
      );
    }
    return [kl, ce];
  },
  token_logprobs: ([logits, ids]) => {
    const rows = logits!.shape[0]!;
    const [logprob, greedy] = [numbers("f32", [rows]), numbers("i32", [rows])];
    for (let r = 0; r < rows; r++) {
      const row = rowOf(logits!, r);
      const id = ids!.data[r]!;
      if (id === ignored) continue;
      logprob.data[r] = row[id] === -Infinity ? -Infinity : row[id]! - logSumExp(row);
      greedy.data[r] = argmaxOf(row) === id ? 1 : 0;
    }
    return [logprob, greedy];
  },
  global_norm: (parts) => [
    numbers("f32", [1], [Math.sqrt(parts.reduce((s, x) => s + x!.data.reduce((a, v) => a + v * v, 0), 0))]),
  ],
  clip_coefficient: ([norm, limits]) => {
    const [maxNorm, scale] = limits!.data as unknown as [number, number];
    const ratio = maxNorm === 0 ? 1 : Math.min(1, maxNorm / (scale * norm!.data[0]! + 1e-6));
    return [numbers("f32", [1], [scale * ratio])];
  },
  adamw: ([hyper, coefficient, p, g, m, v, master]) => {
    const [lr, beta1, beta2, eps, decay, c1, c2] = hyper!.data as unknown as [
      number,
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    p!.data.forEach((_, i) => {
      const gradient = g!.data[i]! * coefficient!.data[0]!;
      m!.data[i] = beta1 * m!.data[i]! + (1 - beta1) * gradient;
      v!.data[i] = beta2 * v!.data[i]! + (1 - beta2) * gradient ** 2;
      const before = (master ?? p!).data[i]!;
      const after = before - lr * decay * before - (lr * (m!.data[i]! / c1)) / (Math.sqrt(v!.data[i]! / c2) + eps);
      if (master) master.data[i] = after;
      p!.data[i] = after;
    });
    return [];
  },
  sgd: ([hyper, coefficient, p, g, m, master]) => {
    const [lr, momentum, decay] = hyper!.data as unknown as [number, number, number];
    p!.data.forEach((_, i) => {
      const before = (master ?? p!).data[i]!;
      let d = g!.data[i]! * coefficient!.data[0]! + decay * before;
      if (m) d = m.data[i] = momentum * m.data[i]! + d;
      if (master) master.data[i] = before - lr * d;
      p!.data[i] = before - lr * d;
    });
    return [];
  },
};

/** Losses of one row, for the goldens. */
export function softDivergence(
  student: readonly number[],
  teacher: readonly number[],
  temperature: number,
  reverse: boolean,
): number {
  const log = (z: readonly number[]): number[] => z.map((x) => x / temperature - logSumExp(z, temperature));
  return divergence(log(student), log(teacher), reverse).value;
}
