import type { TokenIds, Tokenizer } from "@llm/models";

/** A place in a text, as a place between tokens. */
export interface TokenBoundary {
  /** Index of the first token that begins at or after the place. */
  next: number;
  /** False when a token lies across the place: that token is `next − 1`. */
  exact: boolean;
}

/** Finds token boundaries of places in an encoded text. Made by {@link alignTokens}. */
export interface TokenAlignment {
  /** @param offset UTF-16 index into the text; @returns undefined where no method finds it */
  boundary(offset: number): TokenBoundary | undefined;
}

/**
 * Relates tokens to their text. First by bytes: the tokens' bytes, one after the other, must be the text's (a space that
 * SentencePiece puts in front of a word is let through); then every place is known exactly. Where a tokenizer changes the
 * text (normalization), by prefixes: the tokens of `text[0, offset)` must begin the tokens of the text.
 * @param ids  `tokenizer.encode(text, { addSpecialTokens: false })`
 */
export function alignTokens(tokenizer: Tokenizer, text: string, ids: TokenIds): TokenAlignment {
  const starts = byteStarts(tokenizer, text, ids);
  if (starts !== undefined) {
    return {
      boundary(offset) {
        const place = Buffer.byteLength(text.slice(0, offset));
        let low = 0;
        let high = ids.length;
        while (low < high) {
          const middle = (low + high) >> 1;
          if ((starts[middle] as number) < place) low = middle + 1;
          else high = middle;
        }
        // starts[ids.length] is the text's end
        return { next: low, exact: starts[low] === place };
      },
    };
  }
  return {
    boundary(offset) {
      const prefix = tokenizer.encode(text.slice(0, offset), { addSpecialTokens: false });
      const matches = prefix.length <= ids.length && prefix.every((id, index) => id === ids[index]);
      return matches ? { next: prefix.length, exact: true } : undefined;
    },
  };
}

/** Byte offset where each token begins, and the text's length; undefined when the tokens' bytes are not the text's. */
function byteStarts(tokenizer: Tokenizer, text: string, ids: TokenIds): Int32Array | undefined {
  const bytes = Buffer.from(text);
  const starts = new Int32Array(ids.length + 1);
  let place = 0;
  for (let index = 0; index < ids.length; index += 1) {
    const token = tokenizer.tokenBytes(ids[index] as number);
    starts[index] = place;
    const skip = matchesAt(bytes, place, token, 0)
      ? 0
      : token[0] === 0x20 && matchesAt(bytes, place, token, 1)
        ? 1
        : -1;
    if (skip < 0) return undefined;
    place += token.length - skip;
  }
  starts[ids.length] = place;
  return place === bytes.length ? starts : undefined;
}

function matchesAt(bytes: Uint8Array, place: number, token: Uint8Array, skip: number): boolean {
  if (place + token.length - skip > bytes.length) return false;
  for (let index = skip; index < token.length; index += 1)
    if (bytes[place + index - skip] !== token[index]) return false;
  return true;
}
