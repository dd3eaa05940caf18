import { describe, expect, it } from "vitest";
import type { GenerateOptions } from "@llm/models";
import { makeTokenChooser } from "./token-chooser.js";

const PROBABILITIES = [0.5, 0.25, 0.15, 0.1];
const row = (): Float32Array => Float32Array.from(PROBABILITIES, Math.log);
const frequencies = (options: GenerateOptions): number[] => {
  const counts = [0, 0, 0, 0];
  const choose = makeTokenChooser(options, [0], 0);
  for (let step = 0; step < 20_000; step++) counts[choose(row(), { length: step } as number[])]!++;
  return counts.map((count) => count / 20_000);
};

describe("makeTokenChooser", () => {
  it("takes the first largest at temperature 0", () => {
    expect(makeTokenChooser({}, [], 0)(Float32Array.of(1, 3, 3, 2), [])).toBe(1);
  });

  it("draws by the probabilities at temperature 1, sharper below", () => {
    frequencies({ temperature: 1, seed: 4 }).forEach((value, id) => expect(value).toBeCloseTo(PROBABILITIES[id]!, 1));
    const squares = PROBABILITIES.map((value) => value ** 2);
    const sum = squares.reduce((total, value) => total + value, 0);
    frequencies({ temperature: 0.5, seed: 4 }).forEach((value, id) => expect(value).toBeCloseTo(squares[id]! / sum, 1));
  });

  it("keeps only what top-k, top-p and min-p leave", () => {
    const alive = (options: GenerateOptions): boolean[] =>
      frequencies({ temperature: 1, ...options }).map((value) => value > 0);
    expect(alive({ topK: 2 })).toEqual([true, true, false, false]);
    expect(alive({ topP: 0.7 })).toEqual([true, true, false, false]);
    expect(alive({ topP: 0.76 })).toEqual([true, true, true, false]);
    expect(alive({ minP: 0.25 })).toEqual([true, true, true, false]);
    expect(alive({ topP: 0.01 })).toEqual([true, false, false, false]);
  });

  it("applies penalties to what was seen and written", () => {
    expect(makeTokenChooser({ repetitionPenalty: 2 }, [1], 0)(Float32Array.of(1, 1.5, 0, 0), [])).toBe(0);
    expect(makeTokenChooser({ repetitionPenalty: 2 }, [0], 0)(Float32Array.of(-1, -1.5, -9, -9), [])).toBe(1);
    expect(makeTokenChooser({ presencePenalty: 1 }, [1], 0)(Float32Array.of(1, 1.5, 0, 0), [])).toBe(1);
    expect(makeTokenChooser({ presencePenalty: 1 }, [], 0)(Float32Array.of(1, 1.5, 0, 0), [1])).toBe(0);
    expect(makeTokenChooser({ frequencyPenalty: 0.3 }, [], 0)(Float32Array.of(1, 1.5, 0, 0), [1])).toBe(1);
    expect(makeTokenChooser({ frequencyPenalty: 0.3 }, [], 0)(Float32Array.of(1, 1.5, 0, 0), [1, 1])).toBe(0);
    expect(() => makeTokenChooser({ topP: 0 }, [], 0)).toThrow("topP");
    expect(() => makeTokenChooser({ logprobs: 2 }, [], 0)).toThrow("logprobs");
  });
});
