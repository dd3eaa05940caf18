import { LlmError, OptionsError } from "@llm/core";

const NONE = -1;

/**
 * Ownership of the fixed blocks of a paged cache. Knows nothing of tensors or tokens: a block is an integer in
 * [0, blockCount), and every operation is O(1).
 *
 * A block is in one of three states:
 * - used: reference count ≥ 1, not in the free list;
 * - free: count 0, in the free list, its content means nothing;
 * - cached: count 0, in the free list, its content is still findable through a {@link PrefixCache}. `retain` brings it
 *   back to life; `allocate` takes it only when nothing plainly free is left, the least recently released one first.
 */
export class BlockPool {
  readonly blockCount: number;
  /** Called with a cached block that is about to be reused for other content. Set by the prefix cache. */
  onEvict: ((block: number) => void) | undefined;
  readonly #references: Int32Array;
  readonly #cached: Uint8Array;
  /** Doubly linked free list over block ids; index blockCount is the sentinel. Head = next to be taken. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  #freeCount: number;
  #cachedFreeCount = 0;

  /** @throws {OptionsError} blockCount is not a positive integer */
  constructor(blockCount: number) {
    if (!Number.isSafeInteger(blockCount) || blockCount < 1) {
      throw new OptionsError(`[BlockPool] blockCount must be an integer ≥ 1, got ${blockCount}`, { blockCount });
    }
    this.blockCount = blockCount;
    this.#references = new Int32Array(blockCount);
    this.#cached = new Uint8Array(blockCount);
    this.#next = new Int32Array(blockCount + 1);
    this.#previous = new Int32Array(blockCount + 1);
    this.#freeCount = blockCount;
    for (let i = 0; i <= blockCount; i++) {
      this.#next[i] = i === blockCount ? 0 : i + 1;
      this.#previous[i] = i === 0 ? blockCount : i - 1;
    }
  }

  /** Blocks that `allocate` can hand out now, cached ones included. */
  get freeCount(): number {
    return this.#freeCount;
  }

  /** Free blocks whose content a lookup can still find. */
  get cachedFreeCount(): number {
    return this.#cachedFreeCount;
  }

  /** Blocks with a reference count ≥ 1. */
  get usedCount(): number {
    return this.blockCount - this.#freeCount;
  }

  /** @returns how many holders a block has */
  references(block: number): number {
    return this.#references[this.#check(block, "references")]!;
  }

  /** @returns whether the block's content is registered in the prefix cache */
  isCached(block: number): boolean {
    return this.#cached[this.#check(block, "isCached")] === 1;
  }

  /** Takes a block with reference count 1; `undefined` when every block is used. */
  allocate(): number | undefined {
    if (this.#freeCount === 0) return undefined;
    const block = this.#next[this.blockCount]!;
    if (this.#cached[block] === 1) {
      this.onEvict?.(block);
      this.#cached[block] = 0;
      this.#cachedFreeCount--;
    }
    this.#unlink(block);
    this.#references[block] = 1;
    return block;
  }

  /** Adds a holder. A block with count 0 may only be retained while it is cached. @throws {LlmError} INTERNAL */
  retain(block: number): void {
    this.#check(block, "retain");
    if (this.#references[block] === 0) {
      if (this.#cached[block] === 0) throw fault("retain", `block ${block} is free`);
      this.#unlink(block);
      this.#cachedFreeCount--;
    }
    this.#references[block]!++;
  }

  /** Removes a holder; the last one puts the block on the free list. @throws {LlmError} INTERNAL when it has none */
  release(block: number): void {
    this.#check(block, "release");
    if (this.#references[block] === 0) throw fault("release", `block ${block} has no holder`);
    if (--this.#references[block]! > 0) return;
    const cached = this.#cached[block] === 1;
    if (cached) this.#cachedFreeCount++;
    // Plain blocks go to the head (taken first), cached ones to the tail (taken last, oldest first).
    this.#link(block, cached ? this.#previous[this.blockCount]! : this.blockCount);
  }

  /** Marks a used block's content as findable. @throws {LlmError} INTERNAL when the block is free or already marked */
  markCached(block: number): void {
    this.#check(block, "markCached");
    if (this.#references[block] === 0 || this.#cached[block] === 1) {
      throw fault("markCached", `block ${block} must be used and not yet cached`);
    }
    this.#cached[block] = 1;
  }

  /** Forgets the mark; a free block becomes plainly free, next to be taken. */
  unmarkCached(block: number): void {
    this.#check(block, "unmarkCached");
    if (this.#cached[block] === 0) throw fault("unmarkCached", `block ${block} is not cached`);
    this.#cached[block] = 0;
    if (this.#references[block] === 0) {
      this.#cachedFreeCount--;
      this.#unlink(block);
      this.#link(block, this.blockCount);
    }
  }

  /** Walks everything and throws on the first inconsistency. O(blockCount), for tests and debugging. @throws {LlmError} INTERNAL */
  checkIntegrity(): void {
    const seen = new Uint8Array(this.blockCount);
    let count = 0;
    let cachedCount = 0;
    let before = this.blockCount;
    for (let block = this.#next[this.blockCount]!; block !== this.blockCount; block = this.#next[block]!) {
      if (block < 0 || block > this.blockCount || seen[block] === 1)
        throw fault("checkIntegrity", `free list broken at ${block}`);
      if (this.#previous[block] !== before) throw fault("checkIntegrity", `back link of ${block} is wrong`);
      if (this.#references[block] !== 0) throw fault("checkIntegrity", `block ${block} is free and used`);
      if (this.#cached[block] === 1) cachedCount++;
      seen[block] = 1;
      before = block;
      count++;
    }
    if (this.#previous[this.blockCount] !== before) throw fault("checkIntegrity", "tail of the free list is wrong");
    if (count !== this.#freeCount) throw fault("checkIntegrity", `freeCount is ${this.#freeCount}, list has ${count}`);
    if (cachedCount !== this.#cachedFreeCount)
      throw fault("checkIntegrity", `cachedFreeCount is ${this.#cachedFreeCount}, list has ${cachedCount}`);
    for (let block = 0; block < this.blockCount; block++) {
      if (seen[block] === 0 && this.#references[block]! < 1) throw fault("checkIntegrity", `block ${block} is lost`);
    }
  }

  #check(block: number, where: string): number {
    if (!Number.isInteger(block) || block < 0 || block >= this.blockCount) {
      throw fault(where, `block must be in [0, ${this.blockCount}), got ${block}`);
    }
    return block;
  }

  #unlink(block: number): void {
    const next = this.#next[block]!;
    const previous = this.#previous[block]!;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#next[block] = this.#previous[block] = NONE;
    this.#freeCount--;
  }

  #link(block: number, after: number): void {
    const next = this.#next[after]!;
    this.#next[after] = block;
    this.#previous[block] = after;
    this.#next[block] = next;
    this.#previous[next] = block;
    this.#freeCount++;
  }
}

function fault(where: string, text: string): LlmError {
  return new LlmError("INTERNAL", `[BlockPool.${where}] ${text}`);
}
