const word = 0xffffffffn;

/** Low and high 32 bits of a 64-bit product, by 16-bit halves. */
function multiply(a: number, b: number): [low: number, high: number] {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const low = a0 * b0;
  const middle = a1 * b0 + (low >>> 16);
  const cross = a0 * b1 + (middle % 0x10000);
  return [Math.imul(a, b) >>> 0, (a1 * b1 + Math.floor(middle / 0x10000) + Math.floor(cross / 0x10000)) >>> 0];
}

/**
 * One block of Philox4x32-10: four random 32-bit words as a pure function of key and counter. The same words as the
 * native core's.
 * @param seed  the key: a whole number, taken modulo 2⁶⁴
 * @param counter  a whole number taken modulo 2¹²⁸ (low word first), or the four words
 * @see Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 5.2
 */
export function philox4x32(
  seed: bigint | number,
  counter: bigint | number | readonly [number, number, number, number],
): Uint32Array {
  const key = BigInt(seed);
  let k0 = Number(key & word);
  let k1 = Number((key >> 32n) & word);
  let c0: number, c1: number, c2: number, c3: number;
  if (typeof counter === "object") {
    [c0, c1, c2, c3] = counter;
  } else {
    const wide = BigInt(counter);
    [c0, c1, c2, c3] = [0n, 32n, 64n, 96n].map((shift) => Number((wide >> shift) & word)) as [
      number,
      number,
      number,
      number,
    ];
  }
  for (let round = 0; round < 10; round++) {
    const [low0, high0] = multiply(0xd2511f53, c0);
    const [low1, high1] = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return Uint32Array.of(c0, c1, c2, c3);
}

/** A random word as a number in [0, 1): its upper 24 bits × 2⁻²⁴, exact in f32. */
export function uniform01(randomWord: number): number {
  return (randomWord >>> 8) * 2 ** -24;
}
