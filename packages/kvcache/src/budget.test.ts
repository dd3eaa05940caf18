import { LlmError } from "@llm/core";
import { expect, test } from "vitest";
import { kvBlockBytes, planKvBudget } from "./budget.js";

const shape = { blockSize: 16, layers: 32, kvHeads: 8, headDim: 128 };

test("a fraction takes that share of the free memory", () => {
  // Llama-3.1-8B: 128 KiB a token in bf16
  expect(kvBlockBytes({ ...shape, dtype: "bf16" })).toBe(16 * 128 * 1024);
  expect(planKvBudget({ ...shape, dtype: "bf16", freeBytes: 10 * 2 ** 30, maxEntryCount: 0.8 })).toBe(
    Math.floor((0.8 * 10 * 2 ** 30) / (2 * 2 ** 20)),
  );
  expect(planKvBudget({ ...shape, freeBytes: 10 * 2 ** 30 })).toBe(4096);
});

test("int8 pays a scale and a minimum per token and head", () => {
  expect(kvBlockBytes({ ...shape, dtype: "int8" })).toBe(16 * 32 * 8 * 2 * (128 + 8));
});

test("a whole number is a number of blocks", () => {
  expect(planKvBudget({ ...shape, dtype: "f32", freeBytes: 2 ** 40, maxEntryCount: 100 })).toBe(100);
});

test("too little memory says how much was asked for and what to turn down", () => {
  let error: unknown;
  try {
    planKvBudget({ ...shape, dtype: "bf16", freeBytes: 2 ** 22, maxEntryCount: 100 });
  } catch (thrown) {
    error = thrown;
  }
  expect(LlmError.isInstance(error, "OUT_OF_MEMORY")).toBe(true);
  expect((error as LlmError).data).toEqual({ requestedBytes: 100 * 2 ** 21, freeBytes: 2 ** 22, blockBytes: 2 ** 21 });
  expect(() => planKvBudget({ ...shape, freeBytes: 1000 })).toThrow(/lower blockSize/);
});

test.each([0, -1, 1.5, Number.NaN])("maxEntryCount %s is refused", (maxEntryCount) => {
  expect(() => planKvBudget({ ...shape, freeBytes: 2 ** 30, maxEntryCount })).toThrow(/maxEntryCount/);
});
