import { OptionsError } from "@llm/core";

/** What a piece of text led to. */
export interface StopResult {
  /** Text that may be shown now: it holds no stop string and cannot become part of one. */
  text: string;
  /** The stop string that was met; everything from it on is dropped. */
  stop: string | undefined;
}

/**
 * Finds stop strings in text that comes in pieces. Text that could be the beginning of a stop string is held back until it
 * is known not to be. The outcome does not depend on how the text is cut: the stop string that is complete first counts,
 * of several that end at one place the longest.
 */
export class StopMatcher {
  private readonly stops: readonly string[];
  private held = "";
  private met: string | undefined;

  /** @throws {OptionsError} an empty stop string */
  constructor(stops: readonly string[]) {
    if (stops.some((stop) => typeof stop !== "string" || stop === "")) {
      throw new OptionsError("[StopMatcher] expected stop strings of at least one character", { stops });
    }
    this.stops = [...new Set(stops)];
  }

  /** The stop string that ended the text, once there was one. */
  get stopped(): string | undefined {
    return this.met;
  }

  /** Takes the next piece. After a match everything further is dropped. */
  push(piece: string): StopResult {
    if (this.met !== undefined) return { text: "", stop: this.met };
    const text = this.held + piece;
    let match: { stop: string; begin: number; end: number } | undefined;
    for (const stop of this.stops) {
      const begin = text.indexOf(stop);
      if (begin < 0) continue;
      const end = begin + stop.length;
      if (match === undefined || end < match.end || (end === match.end && begin < match.begin))
        match = { stop, begin, end };
    }
    if (match !== undefined) {
      this.met = match.stop;
      this.held = "";
      return { text: text.slice(0, match.begin), stop: match.stop };
    }
    const keep = this.possibleBeginning(text);
    this.held = text.slice(text.length - keep);
    return { text: text.slice(0, text.length - keep), stop: undefined };
  }

  /** The text is over: what was held back is text after all. */
  end(): string {
    const rest = this.held;
    this.held = "";
    return rest;
  }

  /** Length of the longest end of `text` that begins a stop string. */
  private possibleBeginning(text: string): number {
    let longest = 0;
    for (const stop of this.stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
