import { FormatError, UnsupportedError } from "@llm/core";
import { compileCharsmap } from "./charsmap.js";
import { compilePattern } from "./pattern.js";
import { spellText } from "./byte-level.js";
import { asComponent, describe, type ComponentJson } from "./spec.js";

export type Normalizer = (text: string) => string;

/**
 * Compiles the `normalizer` of a tokenizer.json to a function.
 * `Precompiled` follows SentencePiece (longest match at each byte), which differs from the Rust library on some combining
 * sequences where that one looks up whole grapheme clusters.
 * @throws {UnsupportedError} a kind that language models do not use (BertNormalizer …)
 */
export function compileNormalizer(component: ComponentJson | null): Normalizer {
  if (component === null) return (text) => text;
  switch (component.type) {
    case "Sequence": {
      const steps = list(component, "normalizers").map(compileNormalizer);
      return (text) => steps.reduce((current, step) => step(current), text);
    }
    case "Prepend": {
      const prefix = string(component, "prepend");
      return (text) => (text === "" ? "" : prefix + text);
    }
    case "Replace": {
      const pattern = compilePattern(component["pattern"], "normalizer.Replace.pattern");
      const content = string(component, "content");
      return (text) => text.replace(pattern, () => content);
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const form = component.type;
      return (text) => text.normalize(form);
    }
    case "Lowercase":
      // Character by character: no final-sigma rule.
      return (text) => text.replace(/[\p{Lu}\p{Lt}]/gu, (character) => character.toLowerCase());
    case "Strip": {
      const left = component["strip_left"] !== false;
      const right = component["strip_right"] !== false;
      return (text) => {
        const start = left ? text.replace(/^\p{White_Space}+/u, "") : text;
        return right ? start.replace(/\p{White_Space}+$/u, "") : start;
      };
    }
    case "StripAccents":
      return (text) => text.replace(/\p{M}/gu, "");
    case "Nmt":
      return (text) =>
        text
          .replace(/[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]/g, "")
          .replace(/[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/g, " ");
    case "Precompiled": {
      const map = component["precompiled_charsmap"];
      if (map === null || map === undefined || map === "") return (text) => text;
      if (typeof map !== "string") {
        throw new FormatError(`[normalizer.Precompiled] expected base64 text, got ${describe(map)}`);
      }
      return compileCharsmap(Buffer.from(map, "base64"));
    }
    case "ByteLevel":
      return spellText;
    default:
      throw new UnsupportedError(
        `[loadTokenizer] normalizer ${component.type} is not supported; supported: Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Nmt, Precompiled, ByteLevel`,
        { type: component.type },
      );
  }
}

function list(component: ComponentJson, key: string): (ComponentJson | null)[] {
  const steps = component[key];
  if (!Array.isArray(steps)) throw new FormatError(`[normalizer] expected an array "${key}", got ${describe(steps)}`);
  return steps.map((step) => asComponent(step, `normalizer.${key}`));
}

function string(component: ComponentJson, key: string): string {
  const value = component[key];
  if (typeof value !== "string") {
    throw new FormatError(`[normalizer.${component.type}] expected a string "${key}", got ${describe(value)}`);
  }
  return value;
}
