import { describe, expect, it } from "vitest";
import { philox4x32 } from "./philox.js";
import { StopMatcher } from "./stop.js";

/** Feeds the pieces and joins what comes out. */
function run(stops: string[], pieces: string[]): { text: string; stop: string | undefined } {
  const matcher = new StopMatcher(stops);
  let text = "";
  for (const piece of pieces) text += matcher.push(piece).text;
  return { text: text + matcher.end(), stop: matcher.stopped };
}

describe("StopMatcher", () => {
  it("cuts before a stop string that comes in one piece or in many", () => {
    expect(run(["END"], ["one END two"])).toEqual({ text: "one ", stop: "END" });
    expect(run(["END"], [..."one END two"])).toEqual({ text: "one ", stop: "END" });
    expect(run(["\n\n"], ["a\n", "b\n", "\nc"])).toEqual({ text: "a\nb", stop: "\n\n" });
  });

  it("holds back only what may begin a stop string", () => {
    const matcher = new StopMatcher(["<|end|>", "stop"]);
    expect(matcher.push("hello <")).toEqual({ text: "hello ", stop: undefined });
    expect(matcher.push("|e")).toEqual({ text: "", stop: undefined });
    expect(matcher.push("gg")).toEqual({ text: "<|egg", stop: undefined });
    expect(matcher.push("s")).toEqual({ text: "", stop: undefined });
    expect(matcher.push("sto")).toEqual({ text: "s", stop: undefined });
    expect(matcher.end()).toBe("sto");
    expect(matcher.end()).toBe("");
  });

  it("drops everything after a match", () => {
    const matcher = new StopMatcher(["x"]);
    expect(matcher.push("axb")).toEqual({ text: "a", stop: "x" });
    expect(matcher.push("more")).toEqual({ text: "", stop: "x" });
    expect(matcher.end()).toBe("");
    expect(matcher.stopped).toBe("x");
  });

  it("takes the stop string that is complete first, of several the longest", () => {
    expect(run(["abcd", "bc"], ["xabcd"])).toEqual({ text: "xa", stop: "bc" });
    expect(run(["bcd", "abcd"], ["xabcd"])).toEqual({ text: "x", stop: "abcd" });
    expect(run(["a", "ab"], ["ab"])).toEqual({ text: "", stop: "a" });
  });

  it("finds overlapping beginnings", () => {
    expect(run(["aab"], [..."aaab"])).toEqual({ text: "a", stop: "aab" });
    expect(run(["abab!"], [..."ababab!"])).toEqual({ text: "ab", stop: "abab!" });
  });

  it("passes everything through without stop strings and refuses empty ones", () => {
    expect(run([], ["a", "b"])).toEqual({ text: "ab", stop: undefined });
    expect(() => new StopMatcher(["a", ""])).toThrow(/at least one character/);
  });

  it("gives the same for any cutting of any text as for the whole, and as a plain definition", () => {
    let step = 0;
    const below = (limit: number): number => philox4x32(1, step++)[0]! % limit;
    const word = (length: number): string => Array.from({ length }, () => "ab你😀"[below(5)]).join("");
    let matched = 0;
    for (let round = 0; round < 3000; round++) {
      const stops = Array.from({ length: below(4) }, () => word(1 + below(4)));
      const text = word(below(14));
      // The definition: look at every beginning of the text until one ends with a stop string.
      let expected: { text: string; stop: string | undefined } = { text, stop: undefined };
      for (let end = 1; end <= text.length && expected.stop === undefined; end++) {
        const stop = stops.filter((each) => text.slice(0, end).endsWith(each)).sort((a, b) => b.length - a.length)[0];
        if (stop !== undefined) expected = { text: text.slice(0, end - stop.length), stop };
      }
      const pieces: string[] = [];
      for (let at = 0; at < text.length;) {
        const length = below(4);
        pieces.push(text.slice(at, at + length));
        at += length;
      }
      expect(run(stops, [text])).toEqual(expected);
      expect(run(stops, pieces), JSON.stringify({ stops, pieces })).toEqual(expected);
      if (expected.stop !== undefined) matched++;
    }
    expect(matched).toBeGreaterThan(500);
  });
});
