import { afterEach, describe, expect, it } from "vitest";
import {
  backward,
  checkpoint,
  gradEnabled,
  noGrad,
  randomStep,
  scale,
  setRandomStep,
  sum,
  tensor,
  trainingForward,
} from "./index.js";

afterEach(() => setRandomStep(0));

describe("the step of random ops", () => {
  it("is the number set last", () => {
    expect(randomStep()).toBe(0);
    setRandomStep(2 ** 37 - 1);
    expect(randomStep()).toBe(2 ** 37 - 1);
  });

  it.each([-1, 0.5, NaN, 2 ** 37])("cannot be %s", (step) => {
    expect(() => setRandomStep(step)).toThrow(/whole number/);
    expect(randomStep()).toBe(0);
  });
});

describe("trainingForward", () => {
  it("is true where ops record and in both passes of a checkpoint, false under noGrad", () => {
    const seen: [training: boolean, recording: boolean][] = [];
    const look = (): void => void seen.push([trainingForward(), gradEnabled()]);
    const x = tensor([1, 2, 3]);
    x.requiresGrad = true;
    look();
    noGrad(look);
    const y = checkpoint((t) => {
      look();
      noGrad(look);
      return scale(t, 2);
    }, x);
    look();
    backward(sum(y));
    expect(seen).toEqual([
      [true, true],
      [false, false],
      [true, false],
      [false, false],
      [true, true],
      [true, true],
      [false, false],
    ]);
    noGrad(() => checkpoint((t) => (look(), t), x));
    expect(seen.at(-1)).toEqual([false, false]);
    expect(Array.from(x.grad!.dataSync() as Float32Array)).toEqual([2, 2, 2]);
  });
});
