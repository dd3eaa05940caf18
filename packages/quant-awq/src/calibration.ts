/** Calibration data → blocks that the model runs on. */
import { FormatError, NumericError } from "@llm/core";
import type { CalibrationBatch, CalibrationData, CalibrationSource } from "./options.js";

/** Some documents on one token axis; they do not see each other. */
export interface CalibrationBlock {
  ids_T: Int32Array;
  positions_T: Int32Array;
  cuSeqlens_B1: Int32Array;
}

function* documents(data: CalibrationData): Generator<Int32Array> {
  const source = data as Partial<CalibrationSource>;
  const items: Iterable<Int32Array | CalibrationBatch> =
    typeof source.batches === "function"
      ? source.batches({ epochs: 1, seed: 0 })
      : (data as Iterable<Int32Array | CalibrationBatch>);
  for (const item of items) {
    if (item instanceof Int32Array) yield item;
    else if (item?.ids_T instanceof Int32Array && item.cuSeqlens_B1 instanceof Int32Array) {
      for (let b = 0; b + 1 < item.cuSeqlens_B1.length; b++)
        yield item.ids_T.subarray(item.cuSeqlens_B1[b]!, item.cuSeqlens_B1[b + 1]!);
    } else
      throw new FormatError("[quantize] calibration: expected Int32Array ids or packed batches {ids_T, cuSeqlens_B1}");
  }
}

function pack(pieces: readonly Int32Array[]): CalibrationBlock {
  const total = pieces.reduce((n, p) => n + p.length, 0);
  const block = {
    ids_T: new Int32Array(total),
    positions_T: new Int32Array(total),
    cuSeqlens_B1: new Int32Array(pieces.length + 1),
  };
  let at = 0;
  pieces.forEach((ids, b) => {
    block.ids_T.set(ids, at);
    for (let t = 0; t < ids.length; t++) block.positions_T[at + t] = t;
    at += ids.length;
    block.cuSeqlens_B1[b + 1] = at;
  });
  return block;
}

/**
 * The first `maxBlocks` blocks of at most `blockTokens` tokens: documents in their order, longer ones cut, shorter ones packed side by
 * side without seeing each other.
 * @throws {FormatError} no tokens  @throws {NumericError} an id outside [0, vocabSize)
 */
export function calibrationBlocks(
  data: CalibrationData,
  blockTokens: number,
  maxBlocks: number,
  vocabSize: number,
): CalibrationBlock[] {
  const blocks: CalibrationBlock[] = [];
  let open: Int32Array[] = [];
  let held = 0;
  const close = (): void => {
    if (held > 0) blocks.push(pack(open));
    open = [];
    held = 0;
  };
  outer: for (const ids of documents(data)) {
    for (let start = 0; start < ids.length; start += blockTokens) {
      const piece = ids.subarray(start, Math.min(ids.length, start + blockTokens));
      const bad = piece.find((id) => id < 0 || id >= vocabSize);
      if (bad !== undefined)
        throw new NumericError(`[quantize] calibration: expected ids in [0, ${vocabSize}), got ${bad}`, { id: bad });
      if (held + piece.length > blockTokens) close();
      if (blocks.length >= maxBlocks) break outer;
      open.push(piece);
      held += piece.length;
    }
  }
  if (blocks.length < maxBlocks) close();
  if (blocks.length === 0) throw new FormatError("[quantize] calibration: expected at least one token, got none");
  return blocks;
}
