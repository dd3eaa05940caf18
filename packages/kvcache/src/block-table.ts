import { DisposedError, LlmError } from "@llm/core";
import type { BlockPool } from "./block-pool.js";
import type { PrefixCache, PrefixNode } from "./prefix-cache.js";

/** A block whose content must be copied before the next step writes into the copy. */
export interface BlockCopy {
  source: number;
  target: number;
}

const noCopies: readonly BlockCopy[] = Object.freeze([]);

/**
 * The block table of one sequence: which blocks hold the keys and values of its tokens, in order.
 * Position p lives in slot `blocks[⌊p / blockSize⌋] · blockSize + p mod blockSize`.
 */
export class SequenceBlocks {
  readonly blockSize: number;
  readonly #pool: BlockPool;
  readonly #cache: PrefixCache | undefined;
  readonly #salt: string;
  #blocks: number[] = [];
  #node: PrefixNode | undefined;
  /** Full blocks already offered to the prefix cache. */
  #registered = 0;
  #released = false;
  #copyCount = 0;

  /**
   * @param cache  prefix cache over the same pool; absent = nothing is shared
   * @param salt   only sequences with the same salt share blocks
   */
  constructor(pool: BlockPool, blockSize: number, cache?: PrefixCache, salt = "") {
    if (cache !== undefined && cache.blockSize !== blockSize) {
      throw new LlmError(
        "INTERNAL",
        `[SequenceBlocks] blockSize must be the cache's ${cache.blockSize}, got ${blockSize}`,
      );
    }
    this.blockSize = blockSize;
    this.#pool = pool;
    this.#cache = cache;
    this.#salt = salt;
  }

  /** Block ids in order of position. */
  get blocks(): readonly number[] {
    return this.#blocks;
  }

  /** Blocks replaced so far by copy on write. While it stays the same, `blocks` only grows. */
  get copyCount(): number {
    return this.#copyCount;
  }

  /** Tokens that fit into the blocks held now. */
  get capacity(): number {
    return this.#blocks.length * this.blockSize;
  }

  /**
   * Takes over the cached blocks of the longest known prefix. Only on an empty table.
   * @returns tokens that need not be computed, a multiple of blockSize and < length
   */
  matchPrefix(tokens: ArrayLike<number>, length = tokens.length): number {
    this.#live("matchPrefix");
    if (this.#blocks.length > 0) throw new LlmError("INTERNAL", "[SequenceBlocks.matchPrefix] expected an empty table");
    if (this.#cache === undefined) return 0;
    const { blocks, tokenCount } = this.#cache.lookup(tokens, length, this.#salt);
    for (const block of blocks) this.#pool.retain(block);
    this.#blocks = blocks;
    this.registerComputed(tokens, tokenCount);
    return tokenCount;
  }

  /** Blocks that `reserve(tokenCount, writeFrom)` would take from the pool. */
  blocksNeeded(tokenCount: number, writeFrom = tokenCount): number {
    let needed = Math.max(0, Math.ceil(tokenCount / this.blockSize) - this.#blocks.length);
    for (let i = Math.floor(writeFrom / this.blockSize); i < this.#blocks.length; i++) if (this.#isShared(i)) needed++;
    return needed;
  }

  /**
   * Makes room for `tokenCount` tokens in all, and makes every held block from position `writeFrom` on private: a block that
   * has other holders, or that the prefix cache promises to others, is replaced by a fresh one (copy on write).
   * @returns the copies to do before writing, or `undefined` when the pool has too few blocks; then nothing has changed
   */
  reserve(tokenCount: number, writeFrom = tokenCount): readonly BlockCopy[] | undefined {
    this.#live("reserve");
    const needed = this.blocksNeeded(tokenCount, writeFrom);
    if (needed === 0) return noCopies;
    if (needed > this.#pool.freeCount) return undefined;
    const copies: BlockCopy[] = [];
    for (let i = Math.floor(writeFrom / this.blockSize); i < this.#blocks.length; i++) {
      if (!this.#isShared(i)) continue;
      const source = this.#blocks[i]!;
      const target = this.#pool.allocate()!;
      this.#pool.release(source);
      this.#blocks[i] = target;
      this.#copyCount++;
      copies.push({ source, target });
    }
    while (this.capacity < tokenCount) this.#blocks.push(this.#pool.allocate()!);
    return copies;
  }

  /** Slot of a position in the cache tensors. */
  slot(position: number): number {
    const block = this.#blocks[Math.floor(position / this.blockSize)];
    if (block === undefined)
      throw new LlmError(
        "INTERNAL",
        `[SequenceBlocks.slot] position ${position} is outside the ${this.capacity} reserved`,
      );
    return block * this.blockSize + (position % this.blockSize);
  }

  /** Offers every block that `computedCount` tokens fill to the prefix cache. Call after the step that computed them. */
  registerComputed(tokens: ArrayLike<number>, computedCount: number): void {
    this.#live("registerComputed");
    if (this.#cache === undefined) return;
    const full = Math.floor(computedCount / this.blockSize);
    if (full <= this.#registered) return;
    this.#node ??= this.#cache.pinRoot(this.#salt);
    for (; this.#registered < full; this.#registered++) {
      this.#node = this.#cache.extend(
        this.#node,
        tokens,
        this.#registered * this.blockSize,
        this.#blocks[this.#registered]!,
      );
    }
  }

  /**
   * A second sequence that shares this one's blocks for the first `tokenCount` tokens. Whoever writes into a shared block
   * first gets its own copy through {@link reserve}.
   */
  fork(tokenCount: number): SequenceBlocks {
    this.#live("fork");
    if (tokenCount > this.capacity)
      throw new LlmError(
        "INTERNAL",
        `[SequenceBlocks.fork] expected at most ${this.capacity} tokens, got ${tokenCount}`,
      );
    const child = new SequenceBlocks(this.#pool, this.blockSize, this.#cache, this.#salt);
    child.#blocks = this.#blocks.slice(0, Math.ceil(tokenCount / this.blockSize));
    for (const block of child.#blocks) this.#pool.retain(block);
    let node = this.#node;
    if (node !== undefined) {
      child.#registered = Math.min(this.#registered, Math.floor(tokenCount / this.blockSize));
      for (let depth = this.#registered; depth > child.#registered; depth--) node = node.parent!;
      this.#cache!.pin(node);
      child.#node = node;
    }
    return child;
  }

  /** Gives everything back, last block first, so that the cache keeps beginnings longest. The table may not be used again. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    for (let i = this.#blocks.length - 1; i >= 0; i--) this.#pool.release(this.#blocks[i]!);
    this.#blocks = [];
    if (this.#node !== undefined) this.#cache!.unpin(this.#node);
    this.#node = undefined;
  }

  /** Whether the block at an index of the table must not be written. */
  #isShared(index: number): boolean {
    const block = this.#blocks[index]!;
    return this.#pool.references(block) > 1 || this.#pool.isCached(block);
  }

  #live(where: string): void {
    if (this.#released) throw new DisposedError(`[SequenceBlocks.${where}] the table was released`);
  }
}
