import { FormatError, UnsupportedError } from "@llm/core";
import { byteOfFallbackToken, unspell } from "./byte-level.js";
import { compilePattern } from "./pattern.js";
import { asComponent, describe, type ComponentJson } from "./spec.js";

const encoder = new TextEncoder();

/** How tokens become text. */
export interface DecodePlan {
  /** Bytes of a vocabulary entry. */
  bytesOf: (token: string) => Uint8Array;
  /** Added tokens are text as they stand, also those that are not special. */
  byteLevel: boolean;
  /** At the very start of the text, up to `count` of these characters are dropped (the dummy prefix). */
  strip: { content: string; count: number };
  /** One U+FFFD for each byte that is no part of a character (byte fallback), or one for each broken sequence. */
  replaceEachByte: boolean;
}

/**
 * Compiles the `decoder` of a tokenizer.json to a plan that can run token by token.
 * Broken UTF-8 from byte-fallback tokens gives one U+FFFD a byte, as SentencePiece does, and keeps the whole characters
 * beside it; the Rust library replaces the whole run, which no stream can do.
 * @throws {UnsupportedError} a decoder that joins tokens in another way (WordPiece, CTC, BPEDecoder, none)
 */
export function compileDecoder(component: ComponentJson | null): DecodePlan {
  const steps = flatten(component);
  const texts: ((token: string) => string)[] = [];
  let byteLevel = false;
  let byteFallback = false;
  let fused = false;
  let strip = { content: " ", count: 0 };
  for (const step of steps) {
    switch (step.type) {
      case "ByteLevel":
        byteLevel = true;
        break;
      case "ByteFallback":
        byteFallback = true;
        break;
      case "Fuse":
        fused = true;
        break;
      case "Replace": {
        if (fused) throw new UnsupportedError("[loadTokenizer] a Replace decoder after Fuse is not supported");
        const pattern = compilePattern(step["pattern"], "decoder.Replace.pattern");
        const content = String(step["content"] ?? "");
        texts.push((token) => token.replace(pattern, () => content));
        break;
      }
      case "Metaspace": {
        const mark = typeof step["replacement"] === "string" ? step["replacement"] : "▁";
        texts.push((token) => token.replaceAll(mark, " "));
        const legacyNever = step["prepend_scheme"] === undefined && step["add_prefix_space"] === false;
        if (step["prepend_scheme"] !== "never" && !legacyNever) strip = { content: " ", count: 1 };
        break;
      }
      case "Strip": {
        const { content, start = 0, stop = 0 } = step;
        if (
          typeof content !== "string" ||
          content.length !== 1 ||
          typeof start !== "number" ||
          typeof stop !== "number"
        ) {
          throw new FormatError(
            `[decoder.Strip] expected {content: one character, start, stop}, got ${describe(step)}`,
          );
        }
        if (!fused || stop !== 0) {
          throw new UnsupportedError("[loadTokenizer] a Strip decoder is supported after Fuse and at the start only");
        }
        strip = { content, count: start };
        break;
      }
      default:
        throw new UnsupportedError(
          `[loadTokenizer] decoder ${step.type} is not supported; supported: Sequence, ByteLevel, ByteFallback, Fuse, Replace, Metaspace, Strip`,
          { type: step.type },
        );
    }
  }
  return {
    byteLevel,
    strip,
    replaceEachByte: byteFallback,
    bytesOf: (token) => {
      if (byteLevel) return unspell(token) ?? encoder.encode(token);
      const byte = byteFallback ? byteOfFallbackToken(token) : -1;
      return byte >= 0 ? Uint8Array.of(byte) : encoder.encode(texts.reduce((current, step) => step(current), token));
    },
  };
}

function flatten(component: ComponentJson | null): ComponentJson[] {
  if (component === null) {
    throw new UnsupportedError("[loadTokenizer] a tokenizer.json without a decoder is not supported");
  }
  if (component.type !== "Sequence") return [component];
  const steps = component["decoders"];
  if (!Array.isArray(steps)) throw new FormatError(`[decoder] expected an array "decoders", got ${describe(steps)}`);
  return steps.flatMap((step) => flatten(asComponent(step, "decoder.decoders")));
}

/** Turns UTF-8 bytes into text as they come; keeps the bytes of an unfinished character. */
export class Utf8Reader {
  readonly #replaceEachByte: boolean;
  #needed = 0;
  #held = 0;
  #code = 0;
  #lower = 0x80;
  #upper = 0xbf;

  constructor(replaceEachByte: boolean) {
    this.#replaceEachByte = replaceEachByte;
  }

  /** True while the bytes so far end inside a character. */
  get unfinished(): boolean {
    return this.#held > 0;
  }

  push(bytes: Uint8Array): string {
    let text = "";
    for (const byte of bytes) {
      if (this.#held > 0) {
        if (byte >= this.#lower && byte <= this.#upper) {
          this.#lower = 0x80;
          this.#upper = 0xbf;
          this.#code = (this.#code << 6) | (byte & 0x3f);
          this.#held++;
          if (this.#held === this.#needed) {
            text += String.fromCodePoint(this.#code);
            this.#held = 0;
          }
          continue;
        }
        text += this.end();
      }
      text += this.#lead(byte);
    }
    return text;
  }

  /** U+FFFD for what is left of an unfinished character. */
  end(): string {
    const text = "\ufffd".repeat(this.#held === 0 ? 0 : this.#replaceEachByte ? this.#held : 1);
    this.#held = 0;
    return text;
  }

  #lead(byte: number): string {
    if (byte < 0x80) return String.fromCharCode(byte);
    if (byte < 0xc2 || byte > 0xf4) return "\ufffd";
    this.#needed = byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    this.#held = 1;
    this.#code = byte & (0xff >> (this.#needed + 1));
    // Overlong forms, surrogates and code points beyond U+10FFFF end at the second byte.
    this.#lower = byte === 0xe0 ? 0xa0 : byte === 0xf0 ? 0x90 : 0x80;
    this.#upper = byte === 0xed ? 0x9f : byte === 0xf4 ? 0x8f : 0xbf;
    return "";
  }
}
