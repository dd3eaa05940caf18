import { backward, linearDistill, scope, tensor, type Tensor } from "@llm/core";
import { describe, expect, it } from "vitest";

type Kind = "forward" | "reverse";

/** α T² KL + (1 − α) CE of one row, in f64. */
function reference(
  student: readonly number[],
  teacher: readonly number[],
  label: number,
  o: { T: number; alpha: number; kind: Kind },
): { loss: number; kl: number; ce: number } {
  const logSoftmax = (z: readonly number[]): number[] => {
    const top = Math.max(...z);
    const lse = top + Math.log(z.reduce((sum, x) => sum + Math.exp(x - top), 0));
    return z.map((x) => x - lse);
  };
  const q = logSoftmax(student.map((x) => x / o.T));
  const p = logSoftmax(teacher.map((x) => x / o.T));
  const kl =
    o.T ** 2 *
    (o.kind === "forward"
      ? p.reduce((sum, lp, i) => sum + Math.exp(lp) * (lp - q[i]!), 0)
      : q.reduce((sum, lq, i) => sum + Math.exp(lq) * (lq - p[i]!), 0));
  const ce = -logSoftmax(student)[label]!;
  return { loss: o.alpha * kl + (1 - o.alpha) * ce, kl, ce };
}

/** Rows of logits as hidden states of an identity head: the gradient of x is that of the logits. */
function run(
  student: readonly (readonly number[])[],
  teacher: readonly (readonly number[])[],
  labels: readonly number[],
  o: {
    T: number;
    alpha: number;
    kind?: Kind;
    hardLabels?: "data" | "teacher";
    weights?: readonly number[];
    chunk?: number;
  },
) {
  const V = student[0]!.length;
  const identity = (n: number): Tensor =>
    tensor(
      Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
      [n, n],
    );
  const x = tensor(Float32Array.from(student.flat()), [student.length, V]).keep();
  x.requiresGrad = true;
  const out = scope(() => {
    const { loss, kl, ce } = linearDistill(
      x,
      identity(V),
      tensor(Float32Array.from(teacher.flat()), [teacher.length, teacher[0]!.length]),
      identity(teacher[0]!.length),
      tensor(Int32Array.from(labels)),
      o.weights ? tensor(Float32Array.from(o.weights)) : null,
      {
        temperature: o.T,
        alpha: o.alpha,
        ...(o.kind ? { kind: o.kind } : {}),
        ...(o.hardLabels ? { hardLabels: o.hardLabels } : {}),
        ...(o.chunk ? { chunk: o.chunk } : {}),
      },
    );
    backward(loss);
    return {
      loss: loss.itemSync(),
      kl: [...(kl.dataSync() as Float32Array)],
      ce: [...(ce.dataSync() as Float32Array)],
    };
  });
  const grad = [...(x.grad!.dataSync() as Float32Array)];
  x.dispose();
  return { ...out, grad };
}

const rows = (count: number, V: number, seed: number): number[][] =>
  Array.from({ length: count }, (_, r) => Array.from({ length: V }, (_, c) => 2 * Math.sin(1.3 * c + 2.1 * r + seed)));

describe("the distillation loss", () => {
  const z_s = [1, 0, -1, 2];
  const z_t = [2, 1, 0, -1];

  it.each([
    { T: 1, kind: "forward", expected: 0.871766 },
    { T: 1, kind: "reverse", expected: 1.575657 },
    { T: 2, kind: "forward", expected: 1.187709 },
    { T: 2, kind: "reverse", expected: 4 * 0.410108 },
  ] as const)("is $expected at T = $T, $kind", ({ T, kind, expected }) => {
    const { loss, kl } = run([z_s], [z_t], [0], { T, alpha: 1, kind });
    expect(loss).toBeCloseTo(expected, 5);
    expect(kl[0]).toBeCloseTo(expected, 5);
  });

  it.each([
    { T: 1, alpha: 1, kind: "forward" },
    { T: 2, alpha: 0.7, kind: "forward" },
    { T: 4, alpha: 0.3, kind: "reverse" },
    { T: 0.5, alpha: 1, kind: "reverse" },
    { T: 2, alpha: 0, kind: "forward" },
  ] as const)("has the value and gradient of the f64 formula (T = $T, alpha = $alpha, $kind)", (o) => {
    const [student, teacher] = [rows(3, 7, 0.4), rows(3, 7, 1.9)];
    const labels = [2, 6, 0];
    const got = run(student, teacher, labels, o);
    const total = (s: number[][]): number =>
      s.reduce((sum, row, r) => sum + reference(row, teacher[r]!, labels[r]!, o).loss, 0);
    expect(got.loss).toBeCloseTo(total(student), 4);
    const h = 1e-5;
    for (let r = 0; r < 3; r++) {
      expect(got.ce[r]).toBeCloseTo(reference(student[r]!, teacher[r]!, labels[r]!, o).ce, 5);
      for (let c = 0; c < 7; c++) {
        const moved = (by: number): number =>
          total(student.map((row, i) => row.map((z, j) => (i === r && j === c ? z + by : z))));
        expect(got.grad[r * 7 + c]).toBeCloseTo((moved(h) - moved(-h)) / (2 * h), 4);
      }
    }
  });

  it("keeps the size of its gradient when the temperature changes, thanks to T²", () => {
    const small = (seed: number): number[][] => rows(1, 9, seed).map((r) => r.map((z) => z * 0.02));
    const norm = (T: number): number => Math.hypot(...run(small(0.1), small(2), [0], { T, alpha: 1 }).grad);
    expect(norm(4) / norm(2)).toBeCloseTo(1, 2);
    expect(norm(1) / norm(2)).toBeCloseTo(1, 1);
  });

  it.each([1, 2, 5, 64])("is the same in chunks of %i rows", (chunk) => {
    const args = [rows(7, 11, 0), rows(7, 11, 3), [1, 2, -100, 4, 5, 6, 7]] as const;
    const o = { T: 2, alpha: 0.6, weights: [1, 0.5, 1, 2, 1, 0, 1] };
    const whole = run(...args, o);
    const parts = run(...args, { ...o, chunk });
    expect(parts.loss).toBeCloseTo(whole.loss, 5);
    parts.grad.forEach((g, i) => expect(g).toBeCloseTo(whole.grad[i]!, 6));
    expect(parts.kl).toEqual(whole.kl);
  });

  it.each(["data", "teacher"] as const)(
    "gives ignored positions no loss and no gradient, with hard labels of the %s",
    (hardLabels) => {
      const got = run(rows(3, 5, 0), rows(3, 5, 2), [-100, 1, 3], { T: 2, alpha: 0.5, hardLabels, weights: [1, 1, 0] });
      expect([got.kl[0], got.ce[0], got.kl[2], got.ce[2]]).toEqual([0, 0, 0, 0]);
      expect(got.grad.slice(0, 5)).toEqual([0, 0, 0, 0, 0]);
      expect(got.grad.slice(10)).toEqual([0, 0, 0, 0, 0]);
      expect(got.kl[1]).toBeGreaterThan(0);
      const none = run(rows(2, 5, 0), rows(2, 5, 2), [-100, -100], { T: 2, alpha: 0.5, hardLabels });
      expect(none.loss).toBe(0);
      expect(none.grad.every((g) => g === 0)).toBe(true);
    },
  );

  it("cuts a padded vocabulary to the common part", () => {
    const teacher = rows(2, 5, 1);
    const padded = teacher.map((row) => [...row, 50, 60]);
    const o = { T: 2, alpha: 1 };
    expect(run(rows(2, 5, 0), padded, [1, 2], o)).toEqual(run(rows(2, 5, 0), teacher, [1, 2], o));
  });
});
