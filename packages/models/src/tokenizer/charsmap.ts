import { FormatError } from "@llm/core";

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const encoder = new TextEncoder();

/**
 * Compiles SentencePiece's `precompiled_charsmap` (nmt_nfkc, nfkc_cf, custom rules): at every position the longest source
 * sequence of the map is replaced by its target; other characters stay.
 * The blob is `u32 trie bytes | double-array trie (u32 units) | targets, each ended by a zero byte`, little-endian.
 * @throws {FormatError} the blob is shorter than it says
 * @see https://github.com/google/sentencepiece/blob/master/src/normalizer.cc
 */
export function compileCharsmap(blob: Uint8Array): (text: string) => string {
  if (blob.length < 4) throw new FormatError(`[charsmap] expected at least 4 bytes, got ${blob.length}`);
  const view = new DataView(blob.buffer, blob.byteOffset, blob.byteLength);
  const trieBytes = view.getUint32(0, true);
  if (trieBytes % 4 !== 0 || 4 + trieBytes > blob.length) {
    throw new FormatError(`[charsmap] expected a trie of at most ${blob.length - 4} bytes, got ${trieBytes}`);
  }
  const units = new Uint32Array(trieBytes / 4);
  for (let i = 0; i < units.length; i++) units[i] = view.getUint32(4 + i * 4, true);
  const targets = blob.subarray(4 + trieBytes);

  const targetAt = (offset: number): string => {
    const end = targets.indexOf(0, offset);
    return decoder.decode(targets.subarray(offset, end < 0 ? targets.length : end));
  };
  /** Longest match at `start`: [bytes, offset of the target], or undefined. */
  const longest = (bytes: Uint8Array, start: number): [number, number] | undefined => {
    let node = 0;
    let unit = units[0] ?? 0;
    let found: [number, number] | undefined;
    node ^= offsetOf(unit);
    for (let i = start; i < bytes.length; i++) {
      const byte = bytes[i]!;
      if (byte === 0) break;
      node ^= byte;
      unit = units[node] ?? 0;
      if ((unit & 0x800000ff) >>> 0 !== byte) break;
      node ^= offsetOf(unit);
      if ((unit >>> 8) & 1) found = [i + 1 - start, (units[node] ?? 0) & 0x7fffffff];
    }
    return found;
  };

  return (text) => {
    const bytes = encoder.encode(text);
    let result = "";
    let plain = 0;
    let at = 0;
    while (at < bytes.length) {
      const match = longest(bytes, at);
      if (match !== undefined) {
        if (plain < at) result += decoder.decode(bytes.subarray(plain, at));
        result += targetAt(match[1]);
        at += match[0];
        plain = at;
      } else {
        const lead = bytes[at]!;
        at += lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
      }
    }
    return plain === 0 ? text : result + decoder.decode(bytes.subarray(plain));
  };
}

/** Offset field of a darts-clone unit: 21 bits, scaled by 256 when bit 9 is set. */
function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6);
}
