import { OptionsError } from "@llm/core";

/** 32 random bits as a pure function of (seed, stream, counter): two rounds of MurmurHash3's finalizer over the mixed words. */
function randomBits(seedLow: number, seedHigh: number, stream: number, counter: number): number {
  let h = seedLow ^ Math.imul(seedHigh, 0x9e3779b1) ^ Math.imul(stream + 1, 0x85ebca6b);
  for (const word of [counter, stream]) {
    h = (h ^ Math.imul(word, 0xcc9e2d51)) | 0;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    h ^= h >>> 16;
    h = (Math.imul(h, 5) + 0xe6546b64) | 0;
  }
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
  return (h ^ (h >>> 16)) >>> 0;
}

/**
 * A permutation of 0 … count−1 as a pure function of (count, seed, epoch): Fisher–Yates with counter-based random bits, so
 * it is the same on every machine and no generator's state has to be saved.
 * @param seed  integer in [0, 2⁵³)
 * @param epoch  integer ≥ 0
 */
export function permutation(count: number, seed: number, epoch: number): Int32Array {
  if (!Number.isSafeInteger(seed) || seed < 0)
    throw new OptionsError(`[permutation] seed: expected an integer in [0, 2^53), got ${seed}`);
  const order = Int32Array.from({ length: count }, (_, index) => index);
  const low = seed | 0;
  const high = Math.floor(seed / 0x1_0000_0000);
  for (let i = count - 1; i > 0; i -= 1) {
    const j = Math.floor((randomBits(low, high, epoch, i) / 0x1_0000_0000) * (i + 1));
    const swap = order[i] as number;
    order[i] = order[j] as number;
    order[j] = swap;
  }
  return order;
}
