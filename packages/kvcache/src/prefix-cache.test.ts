import { expect, test } from "vitest";
import { BlockPool } from "./block-pool.js";
import { SequenceBlocks } from "./block-table.js";
import { PrefixCache } from "./prefix-cache.js";

const ids = (count: number, from = 0) => Int32Array.from({ length: count }, (_, i) => from + i);

function computed(pool: BlockPool, cache: PrefixCache, tokens: Int32Array, salt = ""): SequenceBlocks {
  const blocks = new SequenceBlocks(pool, cache.blockSize, cache, salt);
  const hit = blocks.matchPrefix(tokens);
  expect(blocks.reserve(tokens.length, hit)).toBeDefined();
  blocks.registerComputed(tokens, tokens.length);
  return blocks;
}

test("a lookup finds whole blocks and leaves at least one token to compute", () => {
  const pool = new BlockPool(10);
  const cache = new PrefixCache(pool, 4);
  computed(pool, cache, ids(12)).release();
  expect(cache.lookup(ids(12)).tokenCount).toBe(8);
  expect(cache.lookup(ids(13)).tokenCount).toBe(12);
  expect(cache.lookup(ids(30)).tokenCount).toBe(12);
  expect(cache.lookup(ids(30), 8).tokenCount).toBe(4);
  expect(cache.lookup(ids(12, 1)).tokenCount).toBe(0);
  expect(cache.lookup(ids(13), 13, "adapter").tokenCount).toBe(0);
  expect(pool.usedCount).toBe(0);
});

test("equal blocks after different beginnings are different", () => {
  const pool = new BlockPool(10);
  const cache = new PrefixCache(pool, 2);
  computed(pool, cache, Int32Array.of(1, 1, 7, 7)).release();
  expect(cache.lookup(Int32Array.of(2, 2, 7, 7, 0)).tokenCount).toBe(0);
  expect(cache.lookup(Int32Array.of(7, 7, 7, 7, 0)).tokenCount).toBe(0);
  expect(cache.lookup(Int32Array.of(1, 1, 7, 7, 0)).tokenCount).toBe(4);
});

test("colliding hashes never give another prompt's blocks", () => {
  class Colliding extends PrefixCache {
    protected override hash(): number {
      return 42;
    }
  }
  const pool = new BlockPool(40);
  const cache = new Colliding(pool, 2);
  const prompts = Array.from({ length: 8 }, (_, i) => Int32Array.of(i, i, i % 2, 9, 5));
  const tables = prompts.map((tokens) => computed(pool, cache, tokens));
  prompts.forEach((tokens, i) => expect(cache.lookup(tokens).blocks).toEqual(tables[i]!.blocks.slice(0, 2)));
  expect(cache.lookup(Int32Array.of(3, 3, 0, 9, 5)).tokenCount).toBe(2);
  cache.checkIntegrity();
  for (const table of tables) table.release();
  while (pool.allocate() !== undefined) cache.checkIntegrity();
  expect(cache.nodeCount).toBe(0);
});

test("tails are evicted before heads", () => {
  const pool = new BlockPool(4);
  const cache = new PrefixCache(pool, 2);
  computed(pool, cache, ids(8)).release();
  pool.allocate();
  expect(cache.lookup(ids(9)).tokenCount).toBe(6);
  pool.allocate();
  expect(cache.lookup(ids(9)).tokenCount).toBe(4);
});

test("two sequences that compute the same block keep their own; the first stays findable", () => {
  const pool = new BlockPool(8);
  const cache = new PrefixCache(pool, 2);
  const a = new SequenceBlocks(pool, 2, cache);
  const b = new SequenceBlocks(pool, 2, cache);
  a.reserve(6);
  b.reserve(6);
  a.registerComputed(ids(6), 2);
  b.registerComputed(ids(6), 2);
  expect(cache.lookup(ids(6)).blocks).toEqual([a.blocks[0]]);
  a.release();
  // a's block goes away while b, whose path runs through it, still grows below it
  while (pool.freeCount > 0) pool.allocate();
  expect(cache.lookup(ids(6)).tokenCount).toBe(0);
  b.registerComputed(ids(6), 6);
  cache.checkIntegrity();
  const c = pool.references(b.blocks[0]!);
  expect(c).toBe(1);
  expect(cache.lookup(ids(7)).tokenCount).toBe(0); // its head is gone
  b.release();
  expect(pool.cachedFreeCount).toBe(2);
});

test("clear forgets everything and leaves used blocks to their holders", () => {
  const pool = new BlockPool(8);
  const cache = new PrefixCache(pool, 2);
  const table = computed(pool, cache, ids(6));
  computed(pool, cache, ids(4, 50)).release();
  cache.clear();
  cache.checkIntegrity();
  pool.checkIntegrity();
  expect(cache.lookup(ids(7)).tokenCount).toBe(0);
  expect(pool.usedCount).toBe(3);
  table.release();
  expect(cache.nodeCount).toBe(0);
});

test("a pool has one prefix cache", () => {
  const pool = new BlockPool(8);
  const cache = new PrefixCache(pool, 2);
  expect(cache.blockSize).toBe(2);
  expect(() => new PrefixCache(pool, 2)).toThrow(/without a prefix cache/);
  expect(() => new PrefixCache(new BlockPool(1), 0)).toThrow(/≥ 1/);
});
