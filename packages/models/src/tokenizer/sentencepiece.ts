import { FormatError, UnsupportedError } from "@llm/core";
import { mergesOfVocabulary } from "./bpe.js";
import { specialToken } from "./config.js";
import { framePostProcessor } from "./post-processor.js";
import type { AddedToken, ComponentJson, TokenizerSpec } from "./spec.js";

/** Kinds of SentencePiece pieces; GGUF uses the same numbers. */
export const pieceType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** A SentencePiece vocabulary and how its normaliser is set. */
export interface SentencePieceVocabulary {
  kind: "bpe" | "unigram";
  pieces: { text: string; score: number; type: number }[];
  addDummyPrefix: boolean;
  removeExtraWhitespaces: boolean;
  charsmap: Uint8Array | undefined;
  unkId: number | undefined;
  bosId: number | undefined;
  eosId: number | undefined;
  padId: number | undefined;
}

/**
 * Reads a serialised `sentencepiece.ModelProto`.
 * @throws {FormatError} broken protobuf, no pieces
 * @throws {UnsupportedError} word or char models, white space as suffix, unescaped white space
 * @see https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
 */
export function readSentencePiece(bytes: Uint8Array, where: string): SentencePieceVocabulary {
  const pieces: SentencePieceVocabulary["pieces"] = [];
  const trainer = new Map<number, Field>();
  const normalizer = new Map<number, Field>();
  for (const field of protobuf(bytes, where)) {
    if (field.number === 1) {
      const piece = { text: "", score: 0, type: pieceType.normal as number };
      for (const inner of protobuf(field.bytes, where)) {
        if (inner.number === 1) piece.text = text(inner.bytes);
        else if (inner.number === 2) piece.score = float(inner.bytes);
        else if (inner.number === 3) piece.type = inner.value;
      }
      pieces.push(piece);
    } else if (field.number === 2) for (const inner of protobuf(field.bytes, where)) trainer.set(inner.number, inner);
    else if (field.number === 3) for (const inner of protobuf(field.bytes, where)) normalizer.set(inner.number, inner);
  }
  if (pieces.length === 0) throw new FormatError(`[${where}] expected a SentencePiece model, got one without pieces`);
  const kind = trainer.get(3)?.value ?? 1;
  if (kind !== 1 && kind !== 2) {
    throw new UnsupportedError(
      `[${where}] SentencePiece model type ${kind === 3 ? "word" : "char"} is not supported; supported: bpe, unigram`,
    );
  }
  if ((trainer.get(24)?.value ?? 0) !== 0)
    throw new UnsupportedError(`[${where}] treat_whitespace_as_suffix is not supported`);
  if ((normalizer.get(5)?.value ?? 1) === 0)
    throw new UnsupportedError(`[${where}] escape_whitespaces = false is not supported`);
  const charsmap = normalizer.get(2)?.bytes;
  const unk = pieces.findIndex((piece) => piece.type === pieceType.unknown);
  const named = (field: number, fallback: string): number | undefined => {
    const name = trainer.get(field)?.bytes;
    const found = pieces.findIndex(
      (piece) => piece.type === pieceType.control && piece.text === (name === undefined ? fallback : text(name)),
    );
    return found < 0 ? undefined : found;
  };
  return {
    kind: kind === 2 ? "bpe" : "unigram",
    pieces,
    addDummyPrefix: (normalizer.get(3)?.value ?? 1) !== 0,
    removeExtraWhitespaces: (normalizer.get(4)?.value ?? 1) !== 0,
    charsmap: charsmap === undefined || charsmap.length === 0 ? undefined : charsmap,
    unkId: unk < 0 ? undefined : unk,
    bosId: named(46, "<s>"),
    eosId: named(47, "</s>"),
    padId: named(48, "<pad>"),
  };
}

/**
 * Turns a SentencePiece vocabulary into a pipeline.
 * @param options.prefixEverySection  the dummy prefix also follows special tokens inside a text (transformers' `legacy`,
 *   llama.cpp); otherwise it stands at the start of the text only
 */
export function sentencePieceSpec(
  vocabulary: SentencePieceVocabulary,
  options: { addBos: boolean; addEos: boolean; prefixEverySection: boolean },
): TokenizerSpec {
  const { pieces, unkId, bosId, eosId, padId } = vocabulary;
  const tokens = uniqueTexts(pieces.map((piece) => piece.text));
  const token = (id: number | undefined): { id: number; content: string } | undefined =>
    id === undefined ? undefined : { id, content: tokens[id]! };
  const byteFallback = pieces.some((piece) => piece.type === pieceType.byte);
  const addedTokens = pieces.flatMap((piece, id): AddedToken[] => {
    const special = piece.type === pieceType.control || piece.type === pieceType.unknown;
    return special || piece.type === pieceType.userDefined ? [specialToken(id, tokens[id]!, special)] : [];
  });
  const unmatchable = new Set(pieces.flatMap((piece, id) => (piece.type === pieceType.normal ? [] : [id])));
  return {
    model:
      vocabulary.kind === "unigram"
        ? {
            type: "Unigram",
            tokens,
            scores: Float64Array.from(pieces, (piece) => piece.score),
            unkId,
            byteFallback,
            unmatchable,
            singlePrecision: true,
          }
        : {
            type: "BPE",
            tokens,
            merges: mergesByScore(vocabulary, tokens),
            unkToken: unkId === undefined ? undefined : tokens[unkId],
            byteFallback,
            fuseUnk: true,
            ignoreMerges: false,
            unmatchable,
          },
    addedTokens,
    ...whitespaceSteps(vocabulary, options.prefixEverySection),
    postProcessor: framePostProcessor(
      options.addBos ? token(bosId) : undefined,
      options.addEos ? token(eosId) : undefined,
    ),
    config: {
      ...(bosId === undefined ? {} : { bosToken: tokens[bosId]! }),
      ...(eosId === undefined ? {} : { eosToken: tokens[eosId]! }),
      ...(padId === undefined ? {} : { padToken: tokens[padId]! }),
      ...(unkId === undefined ? {} : { unkToken: tokens[unkId]! }),
      chatTemplates: new Map(),
      rest: {},
    },
  };
}

function mergesByScore(vocabulary: SentencePieceVocabulary, tokens: string[]): ReturnType<typeof mergesOfVocabulary> {
  const normal = vocabulary.pieces
    .map((piece, id) => ({ text: tokens[id]!, id, rank: 0, score: piece.score, type: piece.type }))
    .filter((piece) => piece.type === pieceType.normal);
  const parts = new Map(normal.map((piece) => [piece.text, piece.id]));
  const order = normal.sort((a, b) => b.score - a.score || a.id - b.id);
  order.forEach((piece, index) => {
    const before = order[index - 1];
    piece.rank = before !== undefined && before.score === piece.score ? before.rank : index;
  });
  return mergesOfVocabulary(order, parts);
}

function whitespaceSteps(
  vocabulary: SentencePieceVocabulary,
  everySection: boolean,
): Pick<TokenizerSpec, "normalizer" | "preTokenizer" | "decoder"> {
  const steps: ComponentJson[] = [];
  const replace = (pattern: object, content: string): ComponentJson => ({ type: "Replace", pattern, content });
  if (vocabulary.charsmap !== undefined) {
    steps.push({ type: "Precompiled", precompiled_charsmap: Buffer.from(vocabulary.charsmap).toString("base64") });
  }
  if (vocabulary.removeExtraWhitespaces) {
    steps.push(replace({ Regex: "\\A +|[ ▁]+\\z" }, ""), replace({ Regex: " {2,}" }, " "));
  }
  const prefix = vocabulary.addDummyPrefix;
  const atStartOnly = prefix && !everySection;
  if (prefix && everySection) steps.push({ type: "Prepend", prepend: "▁" });
  if (!atStartOnly) steps.push(replace({ String: " " }, "▁"));
  return {
    normalizer: steps.length === 0 ? null : steps.length === 1 ? steps[0]! : { type: "Sequence", normalizers: steps },
    preTokenizer: atStartOnly ? { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: false } : null,
    decoder: {
      type: "Sequence",
      decoders: [
        replace({ String: "▁" }, " "),
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
  };
}

/** Some converted vocabularies repeat a text; later copies get a name that no text matches. */
function uniqueTexts(texts: string[]): string[] {
  const seen = new Set<string>();
  return texts.map((entry, id) => {
    const unique = seen.has(entry) ? `${entry}\u0000${id}` : entry;
    seen.add(unique);
    return unique;
  });
}

interface Field {
  number: number;
  /** Of a varint. */
  value: number;
  /** Of the other wire types. */
  bytes: Uint8Array;
}

const noBytes = new Uint8Array(0);

/** The fields of a protobuf message, in order. */
function* protobuf(bytes: Uint8Array, where: string): Generator<Field> {
  let at = 0;
  const broken = (what: string): never => {
    throw new FormatError(`[${where}] expected a SentencePiece model (protobuf): ${what} at byte ${at}`, {
      offset: at,
    });
  };
  const varint = (): number => {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      if (at >= bytes.length) broken("number cut off");
      const byte = bytes[at++]!;
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
    return broken("number too long");
  };
  while (at < bytes.length) {
    const key = varint();
    const number = Math.floor(key / 8);
    const wire = key % 8;
    if (number === 0) broken("field 0");
    if (wire === 0) {
      yield { number, value: varint(), bytes: noBytes };
      continue;
    }
    const size = wire === 1 ? 8 : wire === 5 ? 4 : wire === 2 ? varint() : broken(`wire type ${wire}`);
    if (at + size > bytes.length) broken(`field of ${size} bytes cut off`);
    yield { number, value: 0, bytes: bytes.subarray(at, at + size) };
    at += size;
  }
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

function text(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

function float(bytes: Uint8Array): number {
  return bytes.length === 4 ? new DataView(bytes.buffer, bytes.byteOffset, 4).getFloat32(0, true) : 0;
}
