/** References: embedding, norms, rotary embedding, gated activation, attention with and without pages. Legend: T tokens, H query heads, K key/value heads, D head width. */
import { matrixOf } from "./reference-elementwise.js";
import { copyNumbers, type Numbers, numbers, roundTo } from "./numbers.js";
import type { Reference } from "./reference.js";

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

function normed(x: Numbers, weight: Numbers, eps: number): [y: Numbers, rstd: Numbers] {
  const { rows, cols } = matrixOf(x);
  const y = numbers(x.dtype, x.shape);
  const rstd = numbers("f32", [rows]);
  for (let r = 0; r < rows; r++) {
    let squares = 0;
    for (let c = 0; c < cols; c++) squares += x.data[r * cols + c]! ** 2;
    rstd.data[r] = 1 / Math.sqrt(squares / cols + eps);
    for (let c = 0; c < cols; c++) y.data[r * cols + c] = x.data[r * cols + c]! * rstd.data[r]! * weight.data[c]!;
  }
  return [y, rstd];
}

/** Keys [first, last) that a query at `position` of its sequence sees. */
function visible(position: number, keys: number, causal: boolean, window: number): [first: number, last: number] {
  return [window > 0 ? Math.max(0, position - window + 1) : 0, causal ? Math.min(keys, position + 1) : keys];
}

/** Element (token, head, d) of [T, heads, D]. */
const at = (x: Numbers, t: number, h: number, d: number): number => x.data[(t * x.shape[1]! + h) * x.shape[2]! + d]!;

type Lookup = (b: number, j: number, head: number, d: number) => number;

/** Attention of packed queries over keys and values found by `key` and `value`; [o, lse]. */
function attend(
  q: Numbers,
  cuQ: Numbers,
  lengths: ArrayLike<number>,
  keyHeads: number,
  key: Lookup,
  value: Lookup,
  scale: number,
  causal: boolean,
  window: number,
): [Numbers, Numbers] {
  const [tokens, heads, width] = q.shape as [number, number, number];
  const o = numbers(q.dtype, q.shape);
  const lse = numbers("f32", [heads, tokens]);
  lse.data.fill(-Infinity);
  for (let b = 0; b + 1 < cuQ.data.length; b++) {
    const [start, end] = [cuQ.data[b]!, cuQ.data[b + 1]!];
    for (let t = start; t < end; t++) {
      const [first, last] = visible(t - start + lengths[b]! - (end - start), lengths[b]!, causal, window);
      for (let h = 0; h < heads; h++) {
        if (last <= first) continue;
        const kh = Math.floor(h / (heads / keyHeads));
        const scores = Array.from({ length: last - first }, (_, j) => {
          let s = 0;
          for (let d = 0; d < width; d++) s += at(q, t, h, d) * key(b, first + j, kh, d);
          return s * scale;
        });
        const largest = Math.max(...scores);
        const weights = scores.map((s) => Math.exp(s - largest));
        const total = weights.reduce((x, y) => x + y, 0);
        lse.data[h * tokens + t] = largest + Math.log(total);
        for (let d = 0; d < width; d++) {
          let sum = 0;
          weights.forEach((w, j) => (sum += w * value(b, first + j, kh, d)));
          o.data[(t * heads + h) * width + d] = sum / total;
        }
      }
    }
  }
  return [o, lse];
}

/** What an int8 cache stores of one vector: codes and [scale, minimum], in f32 steps. */
export function quantizeVector(x: ArrayLike<number>): { codes: number[]; scale: number; minimum: number } {
  const { fround } = Math;
  const list = Array.from(x);
  const minimum = Math.min(...list);
  const scale = fround(fround(Math.max(...list) - minimum) / 255);
  return {
    codes: list.map((value) => roundTo("i8", (scale > 0 ? (value - minimum) / scale : 0) - 128)),
    scale,
    minimum,
  };
}

export const layers: Record<string, Reference> = {
  embedding: ([ids, weight]) => {
    const width = weight!.shape[1]!;
    const y = numbers(weight!.dtype, [ids!.data.length, width]);
    ids!.data.forEach((id, t) => y.data.set(weight!.data.subarray(id * width, (id + 1) * width), t * width));
    return [y];
  },
  embedding_bwd: ([dy, ids, dweight]) => {
    const width = dweight!.shape[1]!;
    ids!.data.forEach((id, t) => {
      for (let c = 0; c < width; c++) {
        const i = id * width + c;
        dweight!.data[i] = roundTo(dweight!.dtype, dweight!.data[i]! + dy!.data[t * width + c]!);
      }
    });
    return [];
  },
  rms_norm: ([x, weight], [eps]) => normed(x!, weight!, eps!),
  add_rms_norm: ([x, residual, weight], [eps]) => {
    // The norm is taken of the sum as it is stored; in f32 that is left out, so that the function stays differentiable.
    const stored = (value: number): number => (x!.dtype === "f32" ? value : roundTo(x!.dtype, value));
    const sum = { ...x!, data: x!.data.map((value, i) => stored(value + residual!.data[i]!)) };
    const [y, rstd] = normed(sum, weight!, eps!);
    return [y, sum, rstd];
  },
  rms_norm_bwd: ([dy, x, weight, rstd, dsum], [needDweight]) => {
    const { rows, cols } = matrixOf(x!);
    const dx = numbers(x!.dtype, x!.shape);
    const dweight = numbers("f32", [needDweight ? cols : 1]);
    for (let r = 0; r < rows; r++) {
      let mean = 0;
      for (let c = 0; c < cols; c++)
        mean += (dy!.data[r * cols + c]! * weight!.data[c]! * x!.data[r * cols + c]! * rstd!.data[r]!) / cols;
      for (let c = 0; c < cols; c++) {
        const i = r * cols + c;
        dx.data[i] =
          rstd!.data[r]! * (dy!.data[i]! * weight!.data[c]! - x!.data[i]! * rstd!.data[r]! * mean) +
          (dsum?.data[i] ?? 0);
        if (needDweight) dweight.data[c]! += dy!.data[i]! * x!.data[i]! * rstd!.data[r]!;
      }
    }
    return [dx, dweight];
  },
  rope: ([x, cos, sin, positions], [inverse]) => {
    const [tokens, heads, width] = x!.shape as [number, number, number];
    const half = width / 2;
    const y = numbers(x!.dtype, x!.shape);
    for (let t = 0; t < tokens; t++)
      for (let h = 0; h < heads; h++)
        for (let i = 0; i < half; i++) {
          const c = cos!.data[positions!.data[t]! * half + i]!;
          const s = (inverse ? -1 : 1) * sin!.data[positions!.data[t]! * half + i]!;
          const [a, b] = [at(x!, t, h, i), at(x!, t, h, half + i)];
          y.data[(t * heads + h) * width + i] = a * c - b * s;
          y.data[(t * heads + h) * width + half + i] = b * c + a * s;
        }
    return [y];
  },
  swiglu: ([x]) => {
    const [rows, cols] = [x!.shape[0]!, x!.shape[1]! / 2];
    const y = numbers(x!.dtype, [rows, cols]);
    y.data.forEach((_, i) => {
      const from = Math.floor(i / cols) * 2 * cols + (i % cols);
      y.data[i] = x!.data[from]! * sigmoid(x!.data[from]!) * x!.data[from + cols]!;
    });
    return [y];
  },
  swiglu_bwd: ([dy, x]) => {
    const cols = dy!.shape[1]!;
    const dx = numbers(x!.dtype, x!.shape);
    dy!.data.forEach((d, i) => {
      const from = Math.floor(i / cols) * 2 * cols + (i % cols);
      const [gate, up] = [x!.data[from]!, x!.data[from + cols]!];
      const s = sigmoid(gate);
      dx.data[from] = d * up * s * (1 + gate * (1 - s));
      dx.data[from + cols] = d * gate * s;
    });
    return [dx];
  },
  attention: ([q, k, v, cuQ, cuK], [scale, causal, window]) => {
    const lengths = Array.from(cuK!.data.subarray(1), (end, b) => end - cuK!.data[b]!);
    const look =
      (x: Numbers): Lookup =>
      (b, j, head, d) =>
        at(x, cuK!.data[b]! + j, head, d);
    return attend(q!, cuQ!, lengths, k!.shape[1]!, look(k!), look(v!), scale!, causal !== 0, window!);
  },
  attention_bwd: ([dO, q, k, v, o, lse, cuQ, cuK], [scale, causal, window]) => {
    const [tokens, heads, width] = q!.shape as [number, number, number];
    const keyHeads = k!.shape[1]!;
    const [dq, dk, dv] = [q!, k!, v!].map((x) => numbers(x.dtype, x.shape)) as [Numbers, Numbers, Numbers];
    for (let b = 0; b + 1 < cuQ!.data.length; b++) {
      const [start, end, base] = [cuQ!.data[b]!, cuQ!.data[b + 1]!, cuK!.data[b]!];
      const keys = cuK!.data[b + 1]! - base;
      for (let t = start; t < end; t++)
        for (let h = 0; h < heads; h++) {
          const kh = Math.floor(h / (heads / keyHeads));
          const [first, last] = visible(t - start + keys - (end - start), keys, causal !== 0, window!);
          let delta = 0;
          for (let d = 0; d < width; d++) delta += at(dO!, t, h, d) * at(o!, t, h, d);
          for (let j = base + first; j < base + last; j++) {
            let [s, dp] = [0, 0];
            for (let d = 0; d < width; d++) {
              s += at(q!, t, h, d) * at(k!, j, kh, d);
              dp += at(dO!, t, h, d) * at(v!, j, kh, d);
            }
            const p = Math.exp(s * scale! - lse!.data[h * tokens + t]!);
            const ds = p * (dp - delta) * scale!;
            for (let d = 0; d < width; d++) {
              const [iq, ik] = [(t * heads + h) * width + d, (j * keyHeads + kh) * width + d];
              dq.data[iq]! += ds * k!.data[ik]!;
              dk.data[ik]! += ds * q!.data[iq]!;
              dv.data[ik]! += p * dO!.data[iq]!;
            }
          }
        }
    }
    return [dq, dk, dv];
  },
  kv_append: ([cache, scales, x, slots]) => {
    const [tokens, heads, width] = x!.shape as [number, number, number];
    for (let t = 0; t < tokens; t++) {
      const slot = slots!.data[t]!;
      if (slot < 0) continue;
      for (let h = 0; h < heads; h++) {
        const row = x!.data.subarray((t * heads + h) * width, (t * heads + h + 1) * width);
        const vector = slot * heads + h;
        if (cache!.dtype !== "i8") {
          cache!.data.set(row, vector * width);
          continue;
        }
        const { codes, scale, minimum } = quantizeVector(row);
        cache!.data.set(codes, vector * width);
        scales!.data.set([scale, minimum], 2 * vector);
      }
    }
    return [];
  },
  paged_attention: ([q, kCache, vCache, kScales, vScales, table, cuQ, lengths], [scale, window]) => {
    const [, block, heads, width] = kCache!.shape as [number, number, number, number];
    const columns = table!.shape[1]!;
    const look =
      (cache: Numbers, scales: Numbers | null): Lookup =>
      (b, j, head, d) => {
        const vector = (table!.data[b * columns + Math.floor(j / block)]! * block + (j % block)) * heads + head;
        const x = cache.data[vector * width + d]!;
        return cache.dtype === "i8" ? (x + 128) * scales!.data[2 * vector]! + scales!.data[2 * vector + 1]! : x;
      };
    return [
      attend(
        q!,
        cuQ!,
        lengths!.data,
        heads,
        look(kCache!, kScales!),
        look(vCache!, vScales!),
        scale!,
        true,
        window!,
      )[0],
    ];
  },
};

/** The inputs o and lse of attention_bwd, rounded to what the core would hold. */
export function attentionForward(
  inputs: (Numbers | null)[],
  attributes: readonly number[],
): [o: Numbers, lse: Numbers] {
  const [o, lse] = layers["attention"]!(
    inputs.map((x) => x && copyNumbers(x)),
    attributes,
  ) as [Numbers, Numbers];
  return [
    { ...o, data: o.data.map((x) => roundTo(o.dtype, x)) },
    { ...lse, data: lse.data.map(Math.fround) },
  ];
}
