import { FormatError } from "@llm/core";
import { fallbackToken, byteChar, spellText } from "./byte-level.js";
import { PairTable } from "./pair-table.js";
import { IdBuffer, PieceCache } from "./piece-cache.js";
import type { BpeSpec, MergeTable } from "./spec.js";

const encoder = new TextEncoder();
/** Pieces up to this many UTF-16 units are cached. */
const longestCached = 64;
/** Up to this many symbols the smallest rank is found by scanning; beyond, by a heap. */
const longestScanned = 40;
/** Positions in heap keys: rank × 2^26 + position stays an exact double. */
const positionRange = 2 ** 26;

/**
 * Byte-pair encoding: starts from characters (or bytes) and merges the neighbouring pair of lowest rank, the leftmost among
 * equals, until no pair of the table is left.
 * @see Sennrich et al. 2016, https://arxiv.org/abs/1508.07909
 */
export class BytePairModel {
  readonly spec: BpeSpec;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #pairs: PairTable;
  readonly #cache: PieceCache;
  readonly #byteLevel: boolean;
  /** Byte-level: id of each byte's character. Otherwise: id of each `<0xHH>`. -1 = not in the vocabulary. */
  readonly #byteIds: Int32Array;
  readonly #unkId: number;

  /**
   * @param ids        token → id of the model's own vocabulary
   * @param byteLevel  pieces are read as UTF-8 bytes in GPT-2's spelling
   * @param cacheSize  pieces whose ids are remembered
   */
  constructor(spec: BpeSpec, ids: ReadonlyMap<string, number>, byteLevel: boolean, cacheSize: number) {
    this.spec = spec;
    this.#ids = ids;
    this.#byteLevel = byteLevel;
    this.#cache = new PieceCache(cacheSize);
    const { left, right } = spec.merges;
    this.#pairs = new PairTable(left.length);
    for (let i = 0; i < left.length; i++) this.#pairs.add(left[i]!, right[i]!, i);
    this.#byteIds = new Int32Array(256);
    for (let byte = 0; byte < 256; byte++) {
      this.#byteIds[byte] = ids.get(byteLevel ? byteChar(byte) : fallbackToken(byte)) ?? -1;
    }
    this.#unkId = spec.unkToken === undefined ? -1 : (ids.get(spec.unkToken) ?? -1);
  }

  encode(piece: string, out: IdBuffer): void {
    const known = this.#cache.get(piece);
    if (known !== undefined) {
      if (typeof known === "number") out.push(known);
      else out.pushAll(known);
      return;
    }
    const ids = this.#compute(piece);
    out.pushAll(ids);
    if (piece.length <= longestCached) this.#cache.set(piece, ids.length === 1 ? ids[0]! : ids);
  }

  #compute(piece: string): Int32Array {
    if (this.spec.ignoreMerges) {
      const whole = this.#ids.get(this.#byteLevel ? spellText(piece) : piece);
      if (whole !== undefined) return Int32Array.of(whole);
    }
    const symbols = this.#byteLevel ? this.#bytes(piece) : this.#characters(piece);
    if (symbols.length < 2) return symbols;
    return symbols.length <= longestScanned ? this.#mergeByScan(symbols) : this.#mergeByHeap(symbols);
  }

  #bytes(piece: string): Int32Array {
    const bytes = encoder.encode(piece);
    const out = new IdBuffer(bytes.length);
    for (const byte of bytes) this.#pushOrUnknown(this.#byteIds[byte]!, out);
    return out.slice();
  }

  #characters(piece: string): Int32Array {
    const out = new IdBuffer(piece.length);
    for (const character of piece) {
      const id = this.#ids.get(character);
      if (id !== undefined && !this.spec.unmatchable?.has(id)) {
        out.push(id);
        continue;
      }
      if (this.spec.byteFallback) {
        const bytes = encoder.encode(character);
        if (bytes.every((byte) => this.#byteIds[byte]! >= 0)) {
          for (const byte of bytes) out.push(this.#byteIds[byte]!);
          continue;
        }
      }
      this.#pushOrUnknown(-1, out);
    }
    return out.slice();
  }

  /** An unknown symbol gives the unknown token, once for a run with `fuseUnk`; without such a token it is dropped. */
  #pushOrUnknown(id: number, out: IdBuffer): void {
    if (id >= 0) out.push(id);
    else if (this.#unkId >= 0 && !(this.spec.fuseUnk && out.last() === this.#unkId)) out.push(this.#unkId);
  }

  #mergeByScan(symbols: Int32Array): Int32Array {
    const { rank, merged } = this.spec.merges;
    const pairs = this.#pairs;
    let count = symbols.length;
    /** Merge of symbol i with i+1, or -1. */
    const merge = new Int32Array(count);
    for (let i = 0; i < count - 1; i++) merge[i] = pairs.get(symbols[i]!, symbols[i + 1]!);
    for (;;) {
      let best = -1;
      let bestRank = Infinity;
      for (let i = 0; i < count - 1; i++) {
        const index = merge[i]!;
        if (index >= 0 && rank[index]! < bestRank) {
          best = i;
          bestRank = rank[index]!;
        }
      }
      if (best < 0) return symbols.slice(0, count);
      symbols[best] = merged[merge[best]!]!;
      symbols.copyWithin(best + 1, best + 2, count);
      merge.copyWithin(best + 1, best + 2, count);
      count--;
      if (best > 0) merge[best - 1] = pairs.get(symbols[best - 1]!, symbols[best]!);
      if (best < count - 1) merge[best] = pairs.get(symbols[best]!, symbols[best + 1]!);
    }
  }

  #mergeByHeap(symbols: Int32Array): Int32Array {
    const { rank, merged } = this.spec.merges;
    const count = symbols.length;
    if (count >= positionRange) {
      throw new FormatError(`[encode] a piece of ${count} symbols is longer than ${positionRange - 1}`);
    }
    const next = new Int32Array(count);
    const previous = new Int32Array(count);
    const merge = new Int32Array(count).fill(-1);
    const heap = new KeyHeap(count);
    const look = (at: number): void => {
      const index = next[at]! < count ? this.#pairs.get(symbols[at]!, symbols[next[at]!]!) : -1;
      merge[at] = index;
      if (index >= 0) heap.push(rank[index]! * positionRange + at);
    };
    for (let i = 0; i < count; i++) {
      next[i] = i + 1;
      previous[i] = i - 1;
    }
    for (let i = 0; i < count - 1; i++) look(i);
    for (let key = heap.pop(); key >= 0; key = heap.pop()) {
      const at = key % positionRange;
      const index = merge[at]!;
      // Stale entry: the symbol is gone or has another neighbour by now.
      if (index < 0 || rank[index]! !== (key - at) / positionRange) continue;
      const gone = next[at]!;
      symbols[at] = merged[index]!;
      merge[gone] = -1;
      next[at] = next[gone]!;
      if (next[at]! < count) previous[next[at]!] = at;
      look(at);
      if (previous[at]! >= 0) look(previous[at]!);
    }
    const out = new IdBuffer(count);
    for (let at = 0; at < count; at = next[at]!) out.push(symbols[at]!);
    return out.slice();
  }
}

/** A binary min-heap of doubles. */
class KeyHeap {
  #keys: Float64Array;
  #size = 0;

  constructor(expected: number) {
    this.#keys = new Float64Array(expected + 16);
  }

  push(key: number): void {
    if (this.#size === this.#keys.length) {
      const grown = new Float64Array(this.#keys.length * 2);
      grown.set(this.#keys);
      this.#keys = grown;
    }
    const keys = this.#keys;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent]! <= key) break;
      keys[at] = keys[parent]!;
      at = parent;
    }
    keys[at] = key;
  }

  /** The smallest key, or -1 when empty. */
  pop(): number {
    if (this.#size === 0) return -1;
    const keys = this.#keys;
    const top = keys[0]!;
    const last = keys[--this.#size]!;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= last) break;
      keys[at] = keys[child]!;
      at = child;
    }
    keys[at] = last;
    return top;
  }
}

/**
 * Every way to cut each token into two tokens of the vocabulary, as merges ranked by the token that results: what
 * vocabularies without an explicit list of merges (tiktoken, SentencePiece) mean.
 * @param tokens  the mergeable tokens in order of priority: text, id, and a rank that ties may share
 * @param parts   text → id of everything that may be a part
 */
export function mergesOfVocabulary(
  tokens: readonly { text: string; id: number; rank: number }[],
  parts: ReadonlyMap<string, number>,
): MergeTable {
  const rows: { left: number; right: number; merged: number; rank: number }[] = [];
  for (const { text, id, rank } of tokens) {
    const start = rows.length;
    for (let cut = 1; cut < text.length; cut++) {
      const left = parts.get(text.slice(0, cut));
      if (left === undefined) continue;
      const right = parts.get(text.slice(cut));
      if (right !== undefined) rows.push({ left, right, merged: id, rank });
    }
    if (rows.length - start > 1) {
      const sorted = rows.splice(start).sort((a, b) => a.left - b.left || a.right - b.right);
      rows.push(...sorted);
    }
  }
  return {
    left: Int32Array.from(rows, (row) => row.left),
    right: Int32Array.from(rows, (row) => row.right),
    merged: Int32Array.from(rows, (row) => row.merged),
    rank: Int32Array.from(rows, (row) => row.rank),
  };
}

/**
 * Merges in the order of a merges list, `a b` strings or `[a, b]` pairs.
 * @throws {FormatError} a pair that is not two tokens of the vocabulary
 */
export function mergesOfList(
  list: readonly unknown[],
  ids: ReadonlyMap<string, number>,
  where: string,
  firstLine = 0,
): MergeTable {
  const table: MergeTable = {
    left: new Int32Array(list.length),
    right: new Int32Array(list.length),
    merged: new Int32Array(list.length),
    rank: new Int32Array(list.length),
  };
  list.forEach((entry, index) => {
    const pair: unknown[] = typeof entry === "string" ? cutMerge(entry, ids) : Array.isArray(entry) ? entry : [];
    const [left, right] = pair;
    if (pair.length !== 2 || typeof left !== "string" || typeof right !== "string") {
      throw new FormatError(`[${where}] merge ${index + firstLine}: expected two tokens, got ${JSON.stringify(entry)}`);
    }
    const ids3 = [ids.get(left), ids.get(right), ids.get(left + right)];
    const missing = ids3.indexOf(undefined);
    if (missing >= 0) {
      const token = [left, right, left + right][missing];
      throw new FormatError(`[${where}] merge ${index + firstLine}: ${JSON.stringify(token)} is not in the vocabulary`);
    }
    table.left[index] = ids3[0]!;
    table.right[index] = ids3[1]!;
    table.merged[index] = ids3[2]!;
    table.rank[index] = index;
  });
  return table;
}

/** Cuts `left right`; where tokens hold spaces themselves, at the space that leaves two tokens of the vocabulary. */
function cutMerge(entry: string, ids: ReadonlyMap<string, number>): string[] {
  const first = entry.indexOf(" ");
  if (first < 0) return [];
  if (entry.indexOf(" ", first + 1) < 0) return [entry.slice(0, first), entry.slice(first + 1)];
  for (let at = first; at >= 0; at = entry.indexOf(" ", at + 1)) {
    const pair = [entry.slice(0, at), entry.slice(at + 1)] as const;
    if (ids.has(pair[0]) && ids.has(pair[1]) && ids.has(pair[0] + pair[1])) return [...pair];
  }
  return entry.split(" ");
}
