/**
 * A bounded cache of piece → ids with two generations: a hit in the older one is copied to the younger one, and when the
 * younger one is full it becomes the older one. Keeps what is used recently at the price of one Map look-up.
 */
export class PieceCache {
  #young = new Map<string, number | Int32Array>();
  #old = new Map<string, number | Int32Array>();
  readonly #half: number;

  /** @param capacity  most entries kept */
  constructor(capacity: number) {
    this.#half = Math.max(1, capacity >> 1);
  }

  get size(): number {
    return this.#young.size + this.#old.size;
  }

  /** One id, several ids, or undefined. */
  get(piece: string): number | Int32Array | undefined {
    const young = this.#young.get(piece);
    if (young !== undefined) return young;
    const old = this.#old.get(piece);
    if (old !== undefined) this.#put(piece, old);
    return old;
  }

  /** Remembers a piece. Long pieces are copied first: a slice would keep the whole text that it was cut from alive. */
  set(piece: string, ids: number | Int32Array): void {
    this.#put(piece.length < 13 ? piece : Buffer.from(piece, "utf16le").toString("utf16le"), ids);
  }

  #put(piece: string, ids: number | Int32Array): void {
    if (this.#young.size >= this.#half) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    this.#young.set(piece, ids);
  }
}

/** A growing list of ids. */
export class IdBuffer {
  #ids: Int32Array;
  length = 0;

  constructor(expected: number) {
    this.#ids = new Int32Array(Math.max(16, expected));
  }

  push(id: number): void {
    if (this.length === this.#ids.length) this.#grow(this.length + 1);
    this.#ids[this.length++] = id;
  }

  pushAll(ids: ArrayLike<number>): void {
    if (this.length + ids.length > this.#ids.length) this.#grow(this.length + ids.length);
    this.#ids.set(ids, this.length);
    this.length += ids.length;
  }

  /** The last id, or -1. */
  last(): number {
    return this.length > 0 ? this.#ids[this.length - 1]! : -1;
  }

  /** A copy of the ids from `start`. */
  slice(start = 0): Int32Array {
    return this.#ids.slice(start, this.length);
  }

  #grow(needed: number): void {
    const grown = new Int32Array(Math.max(needed, this.#ids.length * 2));
    grown.set(this.#ids.subarray(0, this.length));
    this.#ids = grown;
  }
}
