/** References: penalties and the sampler. */
import { philox4x32, uniform01 } from "@llm/models";
import { argmaxOf, logSumExp, rowOf } from "./reference-elementwise.js";
import { numbers, roundTo } from "./numbers.js";
import type { Reference } from "./reference.js";

/** Columns of a row of parameters. */
const [temperature, topK, topP, minP, repetition, presence, frequency] = [0, 1, 2, 3, 4, 5, 6];

/** Candidates after temperature, top-k, top-p and min-p, likeliest first, with weights relative to the likeliest. */
export function candidates(logits: ArrayLike<number>, p: ArrayLike<number>): { id: number; weight: number }[] {
  const largest = logits[argmaxOf(logits)]!;
  let list = Array.from(logits, (logit, id) => ({ id, logit, weight: Math.exp((logit - largest) / p[temperature]!) }))
    .filter((c) => c.logit !== -Infinity)
    .sort((a, b) => (a.logit === b.logit ? a.id - b.id : b.logit - a.logit));
  if (p[topK]! >= 1) list = list.slice(0, p[topK]);
  const mass = list.reduce((sum, c) => sum + c.weight, 0);
  if (p[topP]! < 1) {
    let above = 0;
    const end = list.findIndex((c) => (above += c.weight) >= p[topP]! * mass);
    if (end >= 0) list = list.slice(0, end + 1);
  }
  return list.filter((c, i) => i === 0 || c.weight >= p[minP]!);
}

export const sampling: Record<string, Reference> = {
  apply_penalties: ([logits, history, lengths, prompts, params]) => {
    const width = history!.shape[1]!;
    for (let b = 0; b < logits!.shape[0]!; b++) {
      const row = rowOf(logits!, b);
      const p = rowOf(params!, b);
      const all = history!.data.subarray(b * width, b * width + lengths!.data[b]!);
      const output = all.subarray(Math.min(all.length, prompts!.data[b]!));
      for (const id of new Set(all)) {
        row[id] = row[id]! > 0 ? row[id]! / p[repetition]! : row[id]! * p[repetition]!;
        const count = output.filter((x) => x === id).length;
        if (count > 0) row[id] = row[id]! - p[frequency]! * count - p[presence]!;
      }
    }
    return [];
  },
  sample: ([logits, params, seeds, steps]) => {
    const rows = logits!.shape[0]!;
    const [ids, logprob] = [numbers("i32", [rows]), numbers("f32", [rows])];
    for (let b = 0; b < rows; b++) {
      const row = rowOf(logits!, b);
      const p = rowOf(params!, b);
      let id = argmaxOf(row);
      if (p[temperature]! > 0 && row[id] !== -Infinity) {
        const list = candidates(row, p);
        const word = (i: number): bigint => BigInt.asUintN(32, BigInt(seeds!.data[2 * b + i]!));
        const [random] = philox4x32(word(0) | (word(1) << 32n), [steps!.data[b]! >>> 0, 0, 0, 0]);
        const target = uniform01(random!) * list.reduce((sum, c) => sum + c.weight, 0);
        let sum = 0;
        id = (list.find((c) => (sum += c.weight) > target) ?? list[list.length - 1]!).id;
      }
      ids.data[b] = id;
      logprob.data[b] = row[id] === -Infinity ? -Infinity : roundTo("f32", row[id]! - logSumExp(row));
    }
    return [ids, logprob];
  },
};
