import { fallbackToken } from "./byte-level.js";
import { PairTable } from "./pair-table.js";
import { IdBuffer, PieceCache } from "./piece-cache.js";
import type { UnigramSpec } from "./spec.js";

const encoder = new TextEncoder();
const longestCached = 64;
/** An unknown character costs this much more than the least likely piece. */
const unknownPenalty = 10;

/**
 * Unigram language model: the segmentation with the highest sum of piece log-probabilities (Viterbi). Characters that no
 * piece covers become the unknown token, or `<0xHH>` tokens with byte fallback.
 * @see Kudo 2018, https://arxiv.org/abs/1804.10959
 */
export class UnigramModel {
  readonly spec: UnigramSpec;
  readonly #trie: PairTable;
  /** Piece that ends at a trie node, or -1. */
  readonly #pieceOf: Int32Array;
  readonly #cache: PieceCache;
  readonly #unknownScore: number;
  readonly #byteIds: Int32Array | undefined;

  constructor(spec: UnigramSpec, ids: ReadonlyMap<string, number>, cacheSize: number) {
    this.spec = spec;
    this.#cache = new PieceCache(cacheSize);
    let units = 0;
    let lowest = Infinity;
    const matchable = (id: number): boolean => id !== spec.unkId && !spec.unmatchable?.has(id);
    spec.tokens.forEach((token, id) => {
      units += token?.length ?? 0;
      if (token !== undefined && matchable(id)) lowest = Math.min(lowest, spec.scores[id]!);
    });
    this.#unknownScore = lowest - unknownPenalty;
    this.#trie = new PairTable(units);
    const pieceOf = new Int32Array(units + 1).fill(-1);
    let nodes = 1;
    spec.tokens.forEach((token, id) => {
      if (token === undefined || token === "" || !matchable(id)) return;
      let node = 0;
      for (let i = 0; i < token.length; i++) {
        const code = token.charCodeAt(i);
        let child = this.#trie.get(node, code);
        if (child < 0) {
          child = nodes++;
          this.#trie.add(node, code, child);
        }
        node = child;
      }
      pieceOf[node] = id;
    });
    this.#pieceOf = pieceOf.slice(0, nodes);
    if (spec.byteFallback) {
      const bytes = Int32Array.from({ length: 256 }, (_, byte) => ids.get(fallbackToken(byte)) ?? -1);
      this.#byteIds = bytes.includes(-1) ? undefined : bytes;
    }
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

  #compute(text: string): Int32Array {
    const { scores, singlePrecision } = this.spec;
    const length = text.length;
    const best = new Float64Array(length + 1);
    const from = new Int32Array(length + 1).fill(-1);
    /** Piece that ends here on the best path; -1 = unknown character. */
    const via = new Int32Array(length + 1).fill(-1);
    for (let start = 0; start < length;) {
      const width = text.codePointAt(start)! > 0xffff ? 2 : 1;
      const before = best[start]!;
      let single = false;
      let node = 0;
      for (let at = start; at < length; at++) {
        node = this.#trie.get(node, text.charCodeAt(at));
        if (node < 0) break;
        const id = this.#pieceOf[node]!;
        if (id < 0) continue;
        const end = at + 1;
        const sum = before + scores[id]!;
        const score = singlePrecision === true ? Math.fround(sum) : sum;
        if (from[end] === -1 || score > best[end]!) {
          best[end] = score;
          from[end] = start;
          via[end] = id;
        }
        if (end - start === width) single = true;
      }
      if (!single) {
        const end = start + width;
        const sum = before + this.#unknownScore;
        const score = singlePrecision === true ? Math.fround(sum) : sum;
        if (from[end] === -1 || score > best[end]!) {
          best[end] = score;
          from[end] = start;
          via[end] = -1;
        }
      }
      start += width;
    }
    const ends: number[] = [];
    for (let end = length; end > 0; end = from[end]!) ends.push(end);
    const out = new IdBuffer(ends.length);
    let unknownRun = false;
    for (let i = ends.length - 1; i >= 0; i--) {
      const end = ends[i]!;
      const id = via[end]!;
      if (id >= 0) {
        out.push(id);
        unknownRun = false;
      } else if (this.#byteIds !== undefined) {
        for (const byte of encoder.encode(text.slice(from[end]!, end))) out.push(this.#byteIds[byte]!);
      } else {
        if (!unknownRun && this.spec.unkId !== undefined) out.push(this.spec.unkId);
        unknownRun = true;
      }
    }
    return out.slice();
  }
}
