import { FormatError, UnsupportedError } from "@llm/core";
import { compilePattern, compileRegex, gpt2Pattern, isolate, splitAround } from "./pattern.js";
import { asComponent, describe, type ComponentJson } from "./spec.js";

/** Cuts a normalised text into the pieces that the model encodes one by one. */
export interface PreTokenizer {
  /** `first`: the text stands at the very start of the input. */
  split: (text: string, first: boolean) => string[];
  /** The model must read pieces as UTF-8 bytes in GPT-2's spelling. */
  byteLevel: boolean;
}

type Split = (text: string, first: boolean) => string[];

/**
 * Compiles the `pre_tokenizer` of a tokenizer.json.
 * @throws {UnsupportedError} a kind that language models do not use
 */
export function compilePreTokenizer(component: ComponentJson | null): PreTokenizer {
  if (component === null) return { split: (text) => [text], byteLevel: false };
  switch (component.type) {
    case "Sequence": {
      const steps = component["pretokenizers"];
      if (!Array.isArray(steps)) {
        throw new FormatError(`[pre_tokenizer] expected an array "pretokenizers", got ${describe(steps)}`);
      }
      return chain(steps.map((step) => compilePreTokenizer(asComponent(step, "pre_tokenizer.pretokenizers"))));
    }
    case "ByteLevel": {
      const prefix = component["add_prefix_space"] === true;
      const pattern = component["use_regex"] === false ? undefined : compileRegex(gpt2Pattern);
      return {
        byteLevel: true,
        split: (text) => {
          const whole = prefix && !text.startsWith(" ") ? ` ${text}` : text;
          return pattern === undefined ? [whole] : isolate(whole, pattern);
        },
      };
    }
    case "Split": {
      const pattern = compilePattern(component["pattern"], "pre_tokenizer.Split.pattern");
      return text(splitter(pattern, component["behavior"], component["invert"] === true));
    }
    case "Metaspace":
      return text(metaspace(component));
    case "Digits":
      return text(splitter(component["individual_digits"] === true ? /\p{N}/gu : /\p{N}+/gu, "Isolated", false));
    case "Punctuation":
      return text(splitter(/[\p{P}!-/:-@[-`{-~]/gu, component["behavior"] ?? "Isolated", false));
    case "WhitespaceSplit":
      return text(splitter(/\p{White_Space}/gu, "Removed", false));
    case "Whitespace":
      return text(splitter(compileRegex(String.raw`\w+|[^\w\s]+`), "Removed", true));
    default:
      throw new UnsupportedError(
        `[loadTokenizer] pre_tokenizer ${component.type} is not supported; supported: Sequence, ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit`,
        { type: component.type },
      );
  }
}

function text(split: Split): PreTokenizer {
  return { split, byteLevel: false };
}

function chain(steps: PreTokenizer[]): PreTokenizer {
  const bytesAt = steps.findIndex((step) => step.byteLevel);
  if (bytesAt >= 0 && bytesAt < steps.length - 1) {
    throw new UnsupportedError("[loadTokenizer] a pre_tokenizer after ByteLevel is not supported; it must come last");
  }
  const splits = steps.map((step) => step.split);
  return {
    byteLevel: bytesAt >= 0,
    split: (whole, first) => {
      let pieces = [whole];
      for (const split of splits) {
        pieces =
          pieces.length === 1
            ? split(pieces[0]!, first)
            : pieces.flatMap((piece, index) => split(piece, first && index === 0));
      }
      return pieces;
    },
  };
}

/** What a Split does with its matches; `invert` swaps matches and the text between them. */
function splitter(pattern: RegExp, behavior: unknown, invert: boolean): Split {
  switch (behavior) {
    case "Isolated":
      // With `invert` the same pieces come out: both kinds are kept.
      return (whole) => isolate(whole, pattern);
    case "Removed":
      return (whole) =>
        splitAround(whole, pattern)
          .filter((part) => part.match === invert)
          .map((part) => part.text);
    case "MergedWithPrevious":
    case "MergedWithNext":
    case "Contiguous":
      return (whole) => join(splitAround(whole, pattern), behavior, invert);
    default:
      throw new FormatError(`[pre_tokenizer.Split] unknown behavior ${describe(behavior)}`);
  }
}

function join(parts: { text: string; match: boolean }[], behavior: string, invert: boolean): string[] {
  const pieces: string[] = [];
  let previous: boolean | undefined;
  for (const part of parts) {
    const delimiter = part.match !== invert;
    const glue =
      previous !== undefined &&
      (behavior === "Contiguous"
        ? previous === delimiter
        : behavior === "MergedWithPrevious"
          ? delimiter && !previous
          : !delimiter && previous);
    if (glue) pieces[pieces.length - 1] += part.text;
    else pieces.push(part.text);
    previous = delimiter;
  }
  return pieces;
}

function metaspace(component: ComponentJson): Split {
  const mark = typeof component["replacement"] === "string" ? component["replacement"] : "▁";
  const legacy = component["add_prefix_space"] === false ? "never" : "always";
  const scheme = component["prepend_scheme"] ?? legacy;
  if (scheme !== "always" && scheme !== "first" && scheme !== "never") {
    throw new FormatError(`[pre_tokenizer.Metaspace] unknown prepend_scheme ${describe(scheme)}`);
  }
  const words = component["split"] !== false;
  return (whole, first) => {
    let marked = whole.replaceAll(" ", mark);
    if ((scheme === "always" || (scheme === "first" && first)) && marked !== "" && !marked.startsWith(mark)) {
      marked = mark + marked;
    }
    return words ? splitBefore(marked, mark) : [marked];
  };
}

/** Cuts before every mark. */
function splitBefore(text: string, mark: string): string[] {
  const pieces: string[] = [];
  let start = 0;
  for (let at = text.indexOf(mark, 1); at >= 0; at = text.indexOf(mark, at + 1)) {
    pieces.push(text.slice(start, at));
    start = at;
  }
  pieces.push(text.slice(start));
  return pieces;
}
