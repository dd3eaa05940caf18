import { LlmError } from "@llm/core";
import { expect, test } from "vitest";
import { BlockPool } from "./block-pool.js";

function random(seed: number): () => number {
  let state = seed;
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 4294967296;
}

test("every block is handed out once, then allocate answers undefined", () => {
  const pool = new BlockPool(5);
  const taken = Array.from({ length: 5 }, () => pool.allocate());
  expect(new Set(taken)).toEqual(new Set([0, 1, 2, 3, 4]));
  expect(pool.allocate()).toBeUndefined();
  expect(pool.usedCount).toBe(5);
  pool.release(3);
  expect(pool.allocate()).toBe(3);
});

test("cached blocks are taken after plain ones, the least recently released first, and their eviction is told", () => {
  const pool = new BlockPool(4);
  const evicted: number[] = [];
  pool.onEvict = (block) => evicted.push(block);
  for (let i = 0; i < 4; i++) pool.allocate();
  for (const block of [2, 0, 3]) pool.markCached(block);
  for (const block of [2, 0, 3, 1]) pool.release(block);
  expect(pool.cachedFreeCount).toBe(3);
  pool.retain(0);
  expect([pool.allocate(), pool.allocate(), pool.allocate(), pool.allocate()]).toEqual([1, 2, 3, undefined]);
  expect(evicted).toEqual([2, 3]);
  expect(pool.isCached(0)).toBe(true);
  pool.checkIntegrity();
});

test("misuse is a typed error", () => {
  const pool = new BlockPool(2);
  expect(() => pool.release(0)).toThrow(/no holder/);
  expect(() => pool.retain(0)).toThrow(/is free/);
  expect(() => pool.retain(7)).toThrow(/\[0, 2\)/);
  expect(() => pool.unmarkCached(0)).toThrow(/not cached/);
  expect(() => new BlockPool(0)).toThrow(/≥ 1/);
  try {
    pool.markCached(1);
  } catch (error) {
    expect(LlmError.isInstance(error, "INTERNAL")).toBe(true);
  }
  expect.assertions(6);
});

test.each([1, 2, 3, 4, 5, 6, 7, 8])("random operations agree with a model and lose nothing (seed %i)", (seed) => {
  const next = random(seed);
  const count = 1 + Math.floor(next() * 30);
  const pool = new BlockPool(count);
  const references = new Array<number>(count).fill(0);
  const cached = new Set<number>();
  pool.onEvict = (block) => {
    expect(cached.delete(block)).toBe(true);
    expect(references[block]).toBe(0);
  };
  for (let step = 0; step < 3000; step++) {
    const block = Math.floor(next() * count);
    const choice = next();
    if (choice < 0.35) {
      const taken = pool.allocate();
      if (taken === undefined) expect(references.every((n) => n > 0)).toBe(true);
      else {
        expect(references[taken]).toBe(0);
        expect(cached.has(taken)).toBe(false);
        references[taken] = 1;
      }
    } else if (choice < 0.7) {
      if (references[block]! > 0) {
        pool.release(block);
        references[block]!--;
      }
    } else if (choice < 0.85) {
      if (references[block]! > 0 || cached.has(block)) {
        pool.retain(block);
        references[block]!++;
      }
    } else if (choice < 0.97) {
      if (references[block]! > 0 && !cached.has(block)) {
        pool.markCached(block);
        cached.add(block);
      }
    } else if (cached.delete(block)) pool.unmarkCached(block);
    if (step % 16 !== 0) continue;
    expect(pool.usedCount).toBe(references.filter((n) => n > 0).length);
    expect(pool.cachedFreeCount).toBe([...cached].filter((b) => references[b] === 0).length);
    pool.checkIntegrity();
  }
  pool.checkIntegrity();
});
