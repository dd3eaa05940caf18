import { LlmError, OptionsError } from "@llm/core";
import type { BlockPool } from "./block-pool.js";

/**
 * One full block of tokens in its context: the trie node whose path from the root spells every token before it. Opaque to
 * callers; a holder pins it so that later blocks can be registered below it.
 */
export interface PrefixNode {
  readonly parent: PrefixNode | undefined;
  /** The blockSize ids of this block; empty for a root. */
  readonly tokens: Int32Array;
  /** The block that holds these keys and values, −1 while none does (evicted, but something below it is alive). */
  block: number;
  /** Children plus pins; a node without any and without a block is dropped. */
  references: number;
  readonly serial: number;
  readonly hash: number;
  /** Next node with the same hash. */
  sibling: PrefixNode | undefined;
  /** Set on roots: the salt they stand for. */
  readonly salt: string | undefined;
}

/** Result of {@link PrefixCache.lookup}. */
export interface PrefixMatch {
  /** Cached blocks in order; none is retained yet. */
  blocks: number[];
  /** blocks.length × blockSize. */
  tokenCount: number;
}

/**
 * Finds blocks that already hold the keys and values of a prompt's beginning.
 *
 * A block is keyed by (everything before it, its own blockSize tokens); only full blocks are shared. The key of a node is a
 * 32-bit hash of its parent's serial number and its tokens, seeded at random per cache; a hit counts only when parent and
 * tokens are equal, so colliding hashes cost time but never give wrong content. A `salt` (adapter, tenant) starts a separate
 * tree. Eviction belongs to the pool: a cached block without holders is reused least-recently-released first, and
 * {@link SequenceBlocks} releases tails before heads, so prefixes outlive their continuations.
 *
 * @see Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention", §4.4
 */
export class PrefixCache {
  readonly blockSize: number;
  readonly #pool: BlockPool;
  readonly #buckets = new Map<number, PrefixNode>();
  readonly #roots = new Map<string, PrefixNode>();
  readonly #nodeOfBlock: (PrefixNode | undefined)[];
  readonly #seed = (Math.random() * 0x100000000) | 0;
  #serial = 0;
  #nodeCount = 0;

  /** @throws {OptionsError} blockSize is not a positive integer, or the pool already has a prefix cache */
  constructor(pool: BlockPool, blockSize: number) {
    if (!Number.isSafeInteger(blockSize) || blockSize < 1) {
      throw new OptionsError(`[PrefixCache] blockSize must be an integer ≥ 1, got ${blockSize}`, { blockSize });
    }
    if (pool.onEvict !== undefined)
      throw new OptionsError("[PrefixCache] expected a pool without a prefix cache, got one that has one");
    this.blockSize = blockSize;
    this.#pool = pool;
    this.#nodeOfBlock = Array.from({ length: pool.blockCount }, () => undefined);
    pool.onEvict = (block) => this.#evicted(block);
  }

  /** Trie nodes alive; for tests and metrics. */
  get nodeCount(): number {
    return this.#nodeCount;
  }

  /**
   * Longest cached prefix of `tokens[0, length)` in whole blocks, leaving at least one token to compute (its logits are what
   * the caller wants). Changes nothing: the caller retains the blocks that it uses, before any other allocation.
   */
  lookup(tokens: ArrayLike<number>, length = tokens.length, salt = ""): PrefixMatch {
    const blocks: number[] = [];
    let node = this.#roots.get(salt);
    for (let start = 0; node !== undefined && start + this.blockSize < length; start += this.blockSize) {
      node = this.#child(node, tokens, start);
      if (node === undefined || node.block < 0) break;
      blocks.push(node.block);
    }
    return { blocks, tokenCount: blocks.length * this.blockSize };
  }

  /** The root of a salt's tree, pinned: give it back with `unpin`. */
  pinRoot(salt = ""): PrefixNode {
    let root = this.#roots.get(salt);
    if (root === undefined) {
      root = this.#node(undefined, new Int32Array(0), 0, salt);
      this.#roots.set(salt, root);
    }
    root.references++;
    return root;
  }

  /**
   * Moves a pin from `parent` to the node of the block `tokens[start, start + blockSize)` below it, and registers `block` as
   * its content unless another block already is (two sequences may compute the same block at once; the first stays).
   */
  extend(parent: PrefixNode, tokens: ArrayLike<number>, start: number, block: number): PrefixNode {
    let node = this.#child(parent, tokens, start);
    if (node === undefined) {
      const own = new Int32Array(this.blockSize);
      for (let i = 0; i < this.blockSize; i++) own[i] = tokens[start + i]!;
      node = this.#node(parent, own, this.hash(parent.serial, tokens, start), undefined);
      node.sibling = this.#buckets.get(node.hash);
      this.#buckets.set(node.hash, node);
      parent.references++;
    }
    node.references++;
    if (node.block < 0) {
      this.#pool.markCached(block);
      node.block = block;
      this.#nodeOfBlock[block] = node;
    }
    this.unpin(parent);
    return node;
  }

  /** Adds a pin to a node that is already held. */
  pin(node: PrefixNode): void {
    node.references++;
  }

  /** Gives a pin back. */
  unpin(node: PrefixNode): void {
    node.references--;
    this.#dropIfDead(node);
  }

  /** Forgets everything cached; blocks in use stay with their holders. Use after the weights changed. */
  clear(): void {
    for (let block = 0; block < this.#nodeOfBlock.length; block++) {
      if (this.#nodeOfBlock[block] === undefined) continue;
      this.#pool.unmarkCached(block);
      this.#evicted(block);
    }
  }

  /** Checks that nodes, blocks and counts agree; for tests. @throws {LlmError} INTERNAL */
  checkIntegrity(): void {
    const children = new Map<PrefixNode, number>();
    const alive = new Set<PrefixNode>(this.#roots.values());
    for (const [hash, first] of this.#buckets) {
      for (let node: PrefixNode | undefined = first; node !== undefined; node = node.sibling) {
        if (node.hash !== hash || node.parent === undefined) throw fault(`node ${node.serial} is in the wrong bucket`);
        children.set(node.parent, (children.get(node.parent) ?? 0) + 1);
        alive.add(node);
      }
    }
    if (alive.size !== this.#nodeCount) throw fault(`nodeCount is ${this.#nodeCount}, found ${alive.size}`);
    for (const node of alive) {
      if (node.parent !== undefined && !alive.has(node.parent)) throw fault(`node ${node.serial} lost its parent`);
      if (node.references < (children.get(node) ?? 0)) throw fault(`node ${node.serial} has too few references`);
      if (node.block < 0 && node.references === 0) throw fault(`node ${node.serial} is dead but kept`);
      if (node.block >= 0 && this.#nodeOfBlock[node.block] !== node)
        throw fault(`block ${node.block} does not point back`);
    }
    this.#nodeOfBlock.forEach((node, block) => {
      if (this.#pool.isCached(block) !== (node !== undefined))
        throw fault(`block ${block}: the pool's mark and the cache differ`);
      if (node !== undefined && (node.block !== block || !alive.has(node)))
        throw fault(`block ${block} points at a stale node`);
    });
  }

  /** Hash of a block of tokens after its parent (murmur3's mixing over 32-bit words). Protected so that tests can force collisions. */
  protected hash(parentSerial: number, tokens: ArrayLike<number>, start: number): number {
    let h = this.#seed ^ parentSerial;
    for (let i = start; i < start + this.blockSize; i++) {
      let k = Math.imul(tokens[i]!, 0xcc9e2d51);
      k = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
      h ^= k;
      h = (Math.imul((h << 13) | (h >>> 19), 5) + 0xe6546b64) | 0;
    }
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return h ^ (h >>> 16);
  }

  #child(parent: PrefixNode, tokens: ArrayLike<number>, start: number): PrefixNode | undefined {
    let node = this.#buckets.get(this.hash(parent.serial, tokens, start));
    search: for (; node !== undefined; node = node.sibling) {
      if (node.parent !== parent) continue;
      for (let i = 0; i < this.blockSize; i++) if (node.tokens[i] !== tokens[start + i]) continue search;
      return node;
    }
    return undefined;
  }

  #node(parent: PrefixNode | undefined, tokens: Int32Array, hash: number, salt: string | undefined): PrefixNode {
    this.#nodeCount++;
    return { parent, tokens, block: -1, references: 0, serial: ++this.#serial, hash, sibling: undefined, salt };
  }

  #evicted(block: number): void {
    const node = this.#nodeOfBlock[block];
    if (node === undefined) return;
    this.#nodeOfBlock[block] = undefined;
    node.block = -1;
    this.#dropIfDead(node);
  }

  #dropIfDead(start: PrefixNode): void {
    let node: PrefixNode | undefined = start;
    while (node !== undefined && node.references === 0 && node.block < 0) {
      this.#nodeCount--;
      if (node.parent === undefined) {
        this.#roots.delete(node.salt!);
        return;
      }
      const first: PrefixNode = this.#buckets.get(node.hash)!;
      if (first === node) {
        if (node.sibling === undefined) this.#buckets.delete(node.hash);
        else this.#buckets.set(node.hash, node.sibling);
      } else {
        let before: PrefixNode = first;
        while (before.sibling !== node) before = before.sibling!;
        before.sibling = node.sibling;
      }
      node.parent.references--;
      node = node.parent;
    }
  }
}

function fault(text: string): LlmError {
  return new LlmError("INTERNAL", `[PrefixCache.checkIntegrity] ${text}`);
}
