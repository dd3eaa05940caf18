import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { BytePairModel, mergesOfVocabulary } from "./bpe.js";
import { byteChar, byteOfFallbackToken, fallbackToken, spellBytes, unspell } from "./byte-level.js";
import { Utf8Reader } from "./decoder.js";
import { createTokenizer, loadTokenizer, trainBpe } from "./index.js";
import { PairTable } from "./pair-table.js";
import { compileRegex, qwen2Pattern } from "./pattern.js";
import { IdBuffer, PieceCache } from "./piece-cache.js";
import { compilePreTokenizer } from "./pre-tokenizer.js";

const training = (
  JSON.parse(readFileSync(new URL("./fixtures/tokenizer-vectors.json", import.meta.url), "utf8")) as {
    training: { text: string; vocabSize: number; merges: [string, string][] };
  }
).training;

describe("streams", () => {
  const bytes = Array.from({ length: 256 }, (_, byte) => byteChar(byte));
  const byteLevel = createTokenizer({
    model: { type: "BPE", vocab: Object.fromEntries(bytes.map((token, id) => [token, id])), merges: [] },
    added_tokens: [{ id: 256, content: "<é|end>", special: true }],
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false },
    decoder: { type: "ByteLevel" },
  });
  const fallback = createTokenizer({
    model: {
      type: "BPE",
      vocab: Object.fromEntries(
        [...Array.from({ length: 256 }, (_, byte) => fallbackToken(byte)), "▁", "a", "▁a"].map((t, i) => [t, i]),
      ),
      merges: ["▁ a"],
      byte_fallback: true,
    },
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Prepend", prepend: "▁" },
        { type: "Replace", pattern: { String: " " }, content: "▁" },
      ],
    },
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
  });

  test("bytes of one character come out together, never half of it", () => {
    const stream = byteLevel.decodeStream();
    const parts = Array.from(Buffer.from("a€🙂"), (byte) => stream.push(byteLevel.tokenToId(byteChar(byte))!));
    expect(parts).toEqual(["a", "", "", "€", "", "", "", "🙂"]);
    expect(stream.end()).toBe("");
  });

  test("an unfinished character becomes U+FFFD at the end or before the next token", () => {
    const ids = (data: number[]): number[] => data.map((byte) => byteLevel.tokenToId(byteChar(byte))!);
    const stream = byteLevel.decodeStream();
    expect(ids([0xe2, 0x82]).map((id) => stream.push(id))).toEqual(["", ""]);
    expect(stream.end()).toBe("\ufffd");
    expect(byteLevel.decode([...ids([0xe2, 0x82]), 256])).toBe("\ufffd<é|end>");
    expect(byteLevel.decode([...ids([0xe2, 0x82]), 256], { skipSpecialTokens: true })).toBe("\ufffd");
  });

  test("broken UTF-8 decodes as the platform's decoder does", () => {
    const platform = new TextDecoder("utf-8", { ignoreBOM: true });
    let state = 9;
    const interesting = [
      0x00, 0x41, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2, 0xdf, 0xe0, 0xe2, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5,
      0xff,
    ];
    for (let round = 0; round < 3000; round++) {
      const data = Uint8Array.from({ length: 1 + (round % 9) }, () => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return interesting[(state >>> 8) % interesting.length]!;
      });
      const reader = new Utf8Reader(false);
      const streamed = Array.from(data, (byte) => reader.push(Uint8Array.of(byte))).join("") + reader.end();
      expect(streamed).toBe(platform.decode(data));
      expect(byteLevel.decode(Array.from(data, (byte) => byteLevel.tokenToId(byteChar(byte))!))).toBe(streamed);
    }
  });

  test("byte-fallback tokens give one U+FFFD for each byte that is no part of a character", () => {
    expect(fallback.decode([0xe2, 0x82, 0xac])).toBe("€");
    expect(fallback.decode([0x41, 0xe2, 0x82])).toBe("A\ufffd\ufffd");
    expect(fallback.decode([0xe2, 0x82, 257, 0xff])).toBe("\ufffd\ufffda\ufffd");
  });

  test("the dummy prefix is dropped at the start of the text only", () => {
    expect(fallback.decode([258, 258])).toBe("a a");
    expect(fallback.decode([256, 258])).toBe(" a");
    expect(fallback.decode(fallback.encode("  a a "))).toBe("  a a ");
    const stream = fallback.decodeStream();
    expect([258, 258, 256, 257].map((id) => stream.push(id))).toEqual(["a", " a", " ", "a"]);
    expect(Buffer.from(fallback.tokenBytes(258)).toString()).toBe(" a");
  });

  test("a byte token of a space at the start counts as the dummy prefix, as in a whole text", () => {
    const stream = fallback.decodeStream();
    expect([0x20, 0x20, 257].map((id) => stream.push(id))).toEqual(["", " ", "a"]);
  });

  test("an id beyond the vocabulary stands for nothing, one that is no id is refused", () => {
    expect(byteLevel.decode([65, 400, 66])).toBe(byteLevel.decode([65, 66]));
    expect(byteLevel.tokenBytes(400)).toHaveLength(0);
    expect(byteLevel.idToToken(400)).toBeUndefined();
    expect(() => byteLevel.decode([-1])).toThrow(/expected token ids/);
    expect(() => byteLevel.decode([1.5])).toThrow(/expected token ids/);
  });

  test("tokenBytes gives a copy, and lone surrogates are encoded as U+FFFD", () => {
    byteLevel.tokenBytes(65).fill(0);
    expect(byteLevel.tokenBytes(65)[0]).toBe(unspell(byteLevel.idToToken(65)!)![0]);
    expect(byteLevel.decode(byteLevel.encode("a\ud83db"))).toBe("a\ufffdb");
  });
});

describe("training", () => {
  test("learns the merges that Hugging Face's trainer learns", () => {
    const tokenizer = trainBpe([training.text], { vocabSize: training.vocabSize });
    // Both stop when no pair occurs twice.
    expect(tokenizer.vocabSize).toBe(256 + training.merges.length);
    expect(tokenizer.vocabSize).toBeLessThan(training.vocabSize);
    const expected = training.merges.map((pair) => pair.join(""));
    expect(expected.map((_, index) => tokenizer.idToToken(256 + index))).toEqual(expected);
  });

  test("keeps every digit a token of its own and puts special tokens last", async () => {
    const tokenizer = trainBpe(["12 12 12 1212 2024 ".repeat(50) + training.text], {
      vocabSize: 300,
      specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
      eosToken: "<|im_end|>",
      padToken: "<|endoftext|>",
      chatTemplate: "{{ messages[0].content }}",
    });
    expect([...tokenizer.specialTokens.values()]).toEqual([297, 298, 299]);
    expect([tokenizer.bosTokenId, tokenizer.eosTokenId, tokenizer.padTokenId]).toEqual([undefined, 299, 297]);
    const ids = [...tokenizer.encode("2024-12<|im_end|>")];
    expect(ids.map((id) => tokenizer.idToToken(id))).toEqual(["2", "0", "2", "4", "-", "1", "2", "<|im_end|>"]);
    const folder = await mkdtemp(join(tmpdir(), "llm-train-"));
    try {
      await tokenizer.save(folder);
      const again = await loadTokenizer(folder);
      expect(again.encode(training.text)).toEqual(tokenizer.encode(training.text));
      expect(again.decode(again.encode(training.text))).toBe(training.text.normalize("NFC"));
      expect(again.eosTokenId).toBe(299);
      expect(again.chatTemplate).toBe("{{ messages[0].content }}");
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("stops early on a short text and refuses settings that cannot be", () => {
    expect(trainBpe(["ab ab ab"], { vocabSize: 1000 }).vocabSize).toBe(258);
    expect(() => trainBpe([], { vocabSize: 257, specialTokens: ["a", "b"] })).toThrow(/at least 258/);
    expect(() => trainBpe([], { vocabSize: 300, eosToken: "</s>" })).toThrow(/eosToken: expected one of specialTokens/);
    expect(() => trainBpe([], { vocabSize: 300, specialTokens: ["a", "a"] })).toThrow(/twice/);
    expect(() => trainBpe([], { vocabSize: 300, size: 1 } as never)).toThrow(/size/);
  });
});

describe("parts", () => {
  test("byte-level spelling is reversible", () => {
    const all = Uint8Array.from({ length: 256 }, (_, byte) => byte);
    expect(unspell(spellBytes(all))).toEqual(all);
    expect([byteChar(0x20), byteChar(0x0a), byteChar(0x41), byteChar(0xad)]).toEqual(["Ġ", "Ċ", "A", "Ń"]);
    expect(unspell("日")).toBeUndefined();
    expect([byteOfFallbackToken("<0x0A>"), byteOfFallbackToken("<0xZZ>"), byteOfFallbackToken("<0x0A>x")]).toEqual([
      10, -1, -1,
    ]);
  });

  test("merging by heap and by scan gives the same ids", () => {
    const letters = ["a", "b", "c"];
    const texts = [...letters, "ab", "bc", "aa", "abc", "aab", "aaaa", "bcab", "cc", "abcabc"];
    const ids = new Map(texts.map((text, id) => [text, id]));
    const merges = mergesOfVocabulary(
      texts.slice(3).map((text, index) => ({ text, id: index + 3, rank: index >> 1 })),
      ids,
    );
    const spec = {
      type: "BPE",
      tokens: texts,
      merges,
      unkToken: undefined,
      byteFallback: false,
      fuseUnk: false,
      ignoreMerges: false,
    } as const;
    const model = new BytePairModel(spec, ids, false, 2);
    let state = 3;
    for (let round = 0; round < 300; round++) {
      let text = "";
      // 30 symbols are scanned, three times as many go through the heap; "|" is no token and is dropped, so cut there.
      for (let i = 0; i < 30; i++) {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        text += letters[(state >>> 16) % 3]!;
      }
      const expected = naive(text, texts, merges);
      const long = `${text}${text}${text}`;
      const out = new IdBuffer(1);
      model.encode(text, out);
      expect(Array.from(out.slice())).toEqual(expected);
      const outLong = new IdBuffer(1);
      model.encode(long, outLong);
      expect(Array.from(outLong.slice())).toEqual(naive(long, texts, merges));
    }
  });

  test("PairTable and PieceCache keep what was put in, within their bounds", () => {
    const table = new PairTable(1);
    for (let i = 0; i < 5000; i++) expect(table.add(i % 71, i, i * 2)).toBe(true);
    expect(table.add(0, 0, 9)).toBe(false);
    for (let i = 0; i < 5000; i++) expect(table.get(i % 71, i)).toBe(i * 2);
    expect(table.get(1, 0)).toBe(-1);
    const cache = new PieceCache(10);
    for (let i = 0; i < 100; i++) {
      cache.set(`piece number ${i}`, i);
      expect(cache.get("piece number 0")).toBe(0);
    }
    expect(cache.size).toBeLessThanOrEqual(10);
    expect(cache.get("piece number 99")).toBe(99);
    expect(cache.get("piece number 50")).toBeUndefined();
  });

  test("regular expressions keep Oniguruma's meaning", () => {
    const qwen2 = compileRegex(qwen2Pattern);
    expect("it'ſ WE'LL x\u0085y\ufeff 12".match(qwen2)).toEqual([
      "it",
      "'ſ",
      " WE",
      "'LL",
      " x",
      "\u0085y",
      "\ufeff",
      " ",
      "1",
      "2",
    ]);
    expect(() => compileRegex("(?<=a")).toThrow(/cannot be expressed/);
  });

  test.each([
    ["Isolated", ["a", "-", "-", "b", "-"]],
    ["Removed", ["a", "b"]],
    ["MergedWithPrevious", ["a-", "-", "b-"]],
    ["MergedWithNext", ["a", "-", "-b", "-"]],
    ["Contiguous", ["a", "--", "b", "-"]],
  ])("Split %s", (behavior, pieces) => {
    const { split } = compilePreTokenizer({ type: "Split", pattern: { String: "-" }, behavior, invert: false });
    expect(split("a--b-", true)).toEqual(pieces);
  });
});

/** Merges the pair of lowest rank, the leftmost among equals, again and again. */
function naive(text: string, tokens: string[], merges: ReturnType<typeof mergesOfVocabulary>): number[] {
  const symbols = Array.from(text, (letter) => tokens.indexOf(letter));
  for (;;) {
    let best = -1;
    let bestMerge = -1;
    for (let i = 0; i + 1 < symbols.length; i++) {
      const index = merges.left.findIndex((left, at) => left === symbols[i] && merges.right[at] === symbols[i + 1]);
      if (index >= 0 && (bestMerge < 0 || merges.rank[index]! < merges.rank[bestMerge]!)) {
        best = i;
        bestMerge = index;
      }
    }
    if (best < 0) return symbols;
    symbols.splice(best, 2, merges.merged[bestMerge]!);
  }
}
