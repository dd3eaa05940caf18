import type { TokenLogprob, Tokenizer } from "@llm/models";
import type { CompletionLogprobs, TokenLogprobEntry } from "./responses.js";

const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A token's text; one that is not whole UTF-8 characters is spelled `bytes:\xe4\xbd`, as OpenAI does. */
export function tokenText(bytes: Uint8Array): string {
  try {
    return strictUtf8.decode(bytes);
  } catch {
    return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
  }
}

/** JSON has no −∞; this is what stands for it on the wire. */
function finite(logprob: number): number {
  return Math.max(logprob, -9999);
}

/** One token in the chat form. */
export function chatTokenLogprob(tokenizer: Tokenizer, token: TokenLogprob): TokenLogprobEntry {
  return {
    ...bare(tokenizer, token.id, token.logprob),
    top_logprobs: token.top.map(({ id, logprob }) => bare(tokenizer, id, logprob)),
  };
}

function bare(tokenizer: Tokenizer, id: number, logprob: number): Omit<TokenLogprobEntry, "top_logprobs"> {
  const bytes = tokenizer.tokenBytes(id);
  return { token: tokenText(bytes), logprob: finite(logprob), bytes: Array.from(bytes) };
}

/** Builds the legacy completions form; keeps count of characters over a choice's whole text. */
export class CompletionLogprobsWriter {
  readonly #tokenizer: Tokenizer;
  #offset = 0;
  #pending = empty();

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** @param token  null values stand for the first prompt token, which has no context */
  push(id: number, token: TokenLogprob | null): void {
    const bytes = this.#tokenizer.tokenBytes(id);
    const text = tokenText(bytes);
    this.#pending.tokens.push(text);
    this.#pending.text_offset.push(this.#offset);
    this.#pending.token_logprobs.push(token === null ? null : finite(token.logprob));
    if (token === null) {
      this.#pending.top_logprobs.push(null);
    } else {
      const top: Record<string, number> = {};
      for (const other of token.top) {
        // Different tokens may spell the same text; the likelier one, which comes first, keeps the name.
        const key = tokenText(this.#tokenizer.tokenBytes(other.id));
        if (!Object.hasOwn(top, key)) top[key] = finite(other.logprob);
      }
      if (!Object.hasOwn(top, text)) top[text] = finite(token.logprob);
      this.#pending.top_logprobs.push(top);
    }
    // Every byte but a continuation byte begins a character.
    for (const byte of bytes) if ((byte & 0xc0) !== 0x80) this.#offset++;
  }

  /** What was pushed since the last call. */
  take(): NonNullable<CompletionLogprobs> {
    const taken = this.#pending;
    this.#pending = empty();
    return taken;
  }
}

function empty(): NonNullable<CompletionLogprobs> {
  return { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
}
