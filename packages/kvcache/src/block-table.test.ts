import { LlmError } from "@llm/core";
import { describe, expect, test } from "vitest";
import { BlockPool } from "./block-pool.js";
import { SequenceBlocks } from "./block-table.js";
import { PrefixCache } from "./prefix-cache.js";

test("slots follow the table and grow with the sequence", () => {
  const pool = new BlockPool(4);
  const table = new SequenceBlocks(pool, 4);
  expect(table.reserve(5)).toEqual([]);
  expect(table.capacity).toBe(8);
  expect(table.slot(6)).toBe(table.blocks[1]! * 4 + 2);
  expect(() => table.slot(8)).toThrow(/outside/);
  expect(table.reserve(17)).toBeUndefined();
  expect(table.blocks).toHaveLength(2);
  expect(table.reserve(16)).toEqual([]);
  table.release();
  table.release();
  expect(pool.freeCount).toBe(4);
  expect(() => table.reserve(1)).toThrow(/released/);
});

test("a fork shares until somebody writes", () => {
  const pool = new BlockPool(6);
  const parent = new SequenceBlocks(pool, 4);
  parent.reserve(6);
  const child = parent.fork(6);
  expect(child.blocks).toEqual(parent.blocks);
  expect(pool.usedCount).toBe(2);
  expect(child.blocksNeeded(7, 6)).toBe(1);
  const copies = child.reserve(7, 6)!;
  expect(copies).toEqual([{ source: parent.blocks[1], target: child.blocks[1] }]);
  expect(child.blocks[0]).toBe(parent.blocks[0]);
  expect(parent.reserve(7, 6)).toEqual([]);
  parent.release();
  child.release();
  expect(pool.usedCount).toBe(0);
});

test("a table must have its cache's block size", () => {
  const pool = new BlockPool(6);
  expect(() => new SequenceBlocks(pool, 4, new PrefixCache(pool, 2))).toThrow(/blockSize must be the cache's 2, got 4/);
  const table = new SequenceBlocks(pool, 4);
  expect(() => table.fork(1)).toThrow(LlmError);
});

describe("random lives of many sequences", () => {
  test.each(Array.from({ length: 12 }, (_, i) => i + 1))(
    "leak nothing, and every position keeps its token (seed %i)",
    (seed) => {
      let state = seed;
      const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 4294967296;
      const integer = (low: number, high: number) => low + Math.floor(next() * (high - low + 1));
      const blockSize = integer(1, 5);
      const pool = new BlockPool(integer(8, 40));
      const cache = new PrefixCache(pool, blockSize);
      const memory = new Int32Array(pool.blockCount * blockSize);
      interface Life {
        table: SequenceBlocks;
        tokens: number[];
        salt: string;
      }
      let lives: Life[] = [];
      let hits = 0;
      const write = (life: Life, from: number) => {
        const copies = life.table.reserve(life.tokens.length, from);
        if (copies === undefined) return false;
        for (const { source, target } of copies)
          memory.copyWithin(target * blockSize, source * blockSize, (source + 1) * blockSize);
        for (let p = from; p < life.tokens.length; p++) memory[life.table.slot(p)] = life.tokens[p]!;
        life.table.registerComputed(life.tokens, life.tokens.length);
        return true;
      };
      for (let step = 0; step < 1500; step++) {
        const choice = next();
        const life = lives[integer(0, lives.length - 1)];
        if (choice < 0.35 || life === undefined) {
          const salt = next() < 0.3 ? "x" : "";
          const created: Life = {
            table: new SequenceBlocks(pool, blockSize, cache, salt),
            tokens: Array.from({ length: integer(1, 14) }, () => integer(0, 1)),
            salt,
          };
          const hit = created.table.matchPrefix(created.tokens);
          hits += hit;
          expect(hit).toBeLessThan(created.tokens.length);
          if (write(created, hit)) lives.push(created);
          else created.table.release();
        } else if (choice < 0.6) {
          const from = life.tokens.length;
          const grown = { ...life, tokens: [...life.tokens, integer(0, 1)] };
          if (write(grown, from)) life.tokens = grown.tokens;
        } else if (choice < 0.75) {
          const length = integer(1, life.tokens.length);
          const child: Life = {
            table: life.table.fork(length - 1),
            tokens: [...life.tokens.slice(0, length - 1), integer(0, 1)],
            salt: life.salt,
          };
          if (next() < 0.3) {
            life.table.release();
            lives = lives.filter((other) => other !== life);
          }
          if (write(child, length - 1)) lives.push(child);
          else child.table.release();
        } else {
          life.table.release();
          lives = lives.filter((other) => other !== life);
        }
        pool.checkIntegrity();
        cache.checkIntegrity();
        for (const { table, tokens } of lives)
          if (tokens.some((token, p) => memory[table.slot(p)] !== token))
            throw new Error(`step ${step}: a token was overwritten`);
      }
      expect(hits).toBeGreaterThan(0);
      for (const { table } of lives) table.release();
      expect(pool.usedCount).toBe(0);
      cache.clear();
      expect(cache.nodeCount).toBe(0);
      expect(pool.cachedFreeCount).toBe(0);
      pool.checkIntegrity();
    },
  );
});
