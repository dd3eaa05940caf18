import { ShapeError } from "@llm/core";
import { permutation } from "./order.js";

/**
 * Best-fit decreasing bin packing: documents, longest first, each into the fullest bin that still has room. Uses at most
 * 11/9·OPT + 4 bins. Equal lengths are taken in an order that `seed` decides. O(n log capacity).
 * @param lengths  tokens per document, each in [1, capacity]
 * @param capacity  tokens per bin
 * @returns document indices per bin; every document is in exactly one bin
 * @throws {ShapeError} a document longer than a bin, or empty
 * @see D. S. Johnson, "Near-optimal bin packing algorithms", 1973
 */
export function packBestFitDecreasing(lengths: ArrayLike<number>, capacity: number, seed = 0): Int32Array[] {
  const byLength: number[][] = [];
  for (const index of permutation(lengths.length, seed, 0)) {
    const length = lengths[index] as number;
    if (!(length >= 1 && length <= capacity))
      throw new ShapeError(
        `[packBestFitDecreasing] document ${index} must have 1 to ${capacity} tokens, got ${length}`,
        { index, length, capacity },
      );
    (byLength[length] ??= []).push(index);
  }
  const bins: number[][] = [];
  const room = new RoomIndex(capacity);
  for (let length = capacity; length >= 1; length -= 1) {
    for (const index of byLength[length] ?? []) {
      const left = room.smallestAtLeast(length);
      const bin = left < 0 ? bins.push([]) - 1 : room.take(left);
      (bins[bin] as number[]).push(index);
      const rest = (left < 0 ? capacity : left) - length;
      if (rest > 0) room.put(rest, bin);
    }
  }
  return bins.map((bin) => Int32Array.from(bin));
}

/** Open bins by the room they have left; a binary tree over the amounts finds the tightest fit. */
class RoomIndex {
  readonly #leaves: number;
  readonly #occupied: Uint8Array;
  readonly #bins: number[][] = [];

  constructor(capacity: number) {
    this.#leaves = 2 ** Math.ceil(Math.log2(capacity + 1));
    this.#occupied = new Uint8Array(2 * this.#leaves);
  }

  put(amount: number, bin: number): void {
    (this.#bins[amount] ??= []).push(bin);
    for (let node = this.#leaves + amount; node >= 1; node >>= 1) this.#occupied[node] = 1;
  }

  take(amount: number): number {
    const stack = this.#bins[amount] as number[];
    const bin = stack.pop() as number;
    if (stack.length === 0) {
      let node = this.#leaves + amount;
      this.#occupied[node] = 0;
      for (node >>= 1; node >= 1; node >>= 1)
        this.#occupied[node] = (this.#occupied[2 * node] as number) | (this.#occupied[2 * node + 1] as number);
    }
    return bin;
  }

  /** The least amount ≥ `amount` that an open bin has left, or −1. */
  smallestAtLeast(amount: number): number {
    let node = this.#leaves + amount;
    if (this.#occupied[node]) return amount;
    for (; node > 1; node >>= 1) {
      if (node % 2 === 0 && this.#occupied[node + 1]) {
        node += 1;
        while (node < this.#leaves) node = this.#occupied[2 * node] ? 2 * node : 2 * node + 1;
        return node - this.#leaves;
      }
    }
    return -1;
  }
}
