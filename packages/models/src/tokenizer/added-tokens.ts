import { escapeRegex } from "./pattern.js";
import type { AddedToken } from "./spec.js";

const wordEnd = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]$/u;
const wordStart = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]/u;

/** Finds added tokens in a text: the longest at the leftmost place, as Hugging Face tokenizers does. */
export class AddedTokenMatcher {
  readonly #pattern: RegExp | undefined;
  readonly #tokens = new Map<string, AddedToken>();

  /** @param textOf  how a token's content looks in the text that is searched (raw or normalised) */
  constructor(tokens: readonly AddedToken[], textOf: (content: string) => string) {
    for (const token of tokens) {
      const content = textOf(token.content);
      if (content !== "") this.#tokens.set(content, token);
    }
    if (this.#tokens.size > 0) {
      const contents = [...this.#tokens.keys()].sort((a, b) => b.length - a.length);
      this.#pattern = new RegExp(contents.map(escapeRegex).join("|"), "gu");
    }
  }

  /** Cuts a text into ids of added tokens and the text between them. */
  split(text: string): (string | number)[] {
    if (this.#pattern === undefined || text === "") return text === "" ? [] : [text];
    const parts: (string | number)[] = [];
    let done = 0;
    for (const match of text.matchAll(this.#pattern)) {
      const token = this.#tokens.get(match[0])!;
      let start = match.index;
      let stop = start + match[0].length;
      if (start < done) continue;
      if (
        token.singleWord &&
        (wordEnd.test(text.slice(Math.max(0, start - 2), start)) || wordStart.test(text.slice(stop, stop + 2)))
      ) {
        continue;
      }
      if (token.lstrip) start = done + text.slice(done, start).replace(/\p{White_Space}+$/u, "").length;
      if (token.rstrip) stop += /^\p{White_Space}*/u.exec(text.slice(stop))![0].length;
      if (start > done) parts.push(text.slice(done, start));
      parts.push(token.id);
      done = stop;
    }
    if (done < text.length) parts.push(text.slice(done));
    return parts;
  }
}
