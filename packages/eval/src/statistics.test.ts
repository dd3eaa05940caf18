import { describe, expect, it } from "vitest";
import { erfc, meanEstimate, twoSidedPValue, weightedMeanEstimate } from "./statistics.js";

describe("statistics", () => {
  it("gives an accuracy the standard error sqrt(p(1-p)/(n-1))", () => {
    const estimate = meanEstimate([1, 1, 1, 0, 0, 1, 1, 0, 1, 1])!;
    expect(estimate.value).toBeCloseTo(0.7, 12);
    expect(estimate.standardError).toBeCloseTo(Math.sqrt((0.7 * 0.3) / 9), 12);
    expect(estimate.n).toBe(10);
  });

  it("gives the sample standard deviation over sqrt(n) for other numbers", () => {
    // 2, 4, 9: mean 5, squares 9 + 1 + 16 = 26, s² = 13, SE = sqrt(13/3).
    expect(meanEstimate([2, 4, 9])).toEqual({ value: 5, standardError: Math.sqrt(13 / 3), n: 3 });
  });

  it("has no standard error for one observation and no estimate for none", () => {
    expect(meanEstimate([0.5])).toEqual({ value: 0.5, standardError: undefined, n: 1 });
    expect(meanEstimate([])).toBeUndefined();
  });

  it("weighs by tokens: the ratio estimator by hand", () => {
    // values 1 and 3 with weights 3 and 1: R = 6/4 = 1.5; Σ w²(x−R)² = 9·0.25 + 1·2.25 = 4.5; SE = sqrt(2·4.5)/4 = 0.75.
    expect(weightedMeanEstimate([1, 3], [3, 1])).toEqual({ value: 1.5, standardError: 0.75, n: 2 });
  });

  it("knows the normal distribution", () => {
    // Python's math.erfc.
    const values: [number, number][] = [
      [1e-8, 0.9999999887162083],
      [0.5, 0.4795001221869535],
      [1, 0.15729920705028513],
      [1.9999, 0.004679802092970608],
      [2, 0.004677734981047265],
      [2.5, 0.0004069520174449589],
      [5, 1.5374597944280351e-12],
      [26, 5.663192408856143e-296],
      [-1, 1.8427007929497148],
    ];
    for (const [x, value] of values) expect(Math.abs(erfc(x) / value - 1), `erfc(${x})`).toBeLessThan(1e-12);
    expect([erfc(0), erfc(Infinity), erfc(-Infinity), erfc(Number.NaN)]).toEqual([1, 0, 2, Number.NaN]);
    expect(twoSidedPValue(0)).toBe(1);
    expect(twoSidedPValue(1.959963985)).toBeCloseTo(0.05, 6);
    expect(twoSidedPValue(-3)).toBeCloseTo(0.002699796, 7);
  });
});
