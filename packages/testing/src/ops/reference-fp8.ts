/** References: rows in 8-bit floats (e4m3) and products of them. Codes depend on the last bit, so they are computed in f32 steps (`fround`). */
import { dtypes } from "@llm/core";
import { matrixOf } from "./reference-elementwise.js";
import { type Numbers, numbers, roundEven } from "./numbers.js";
import type { Reference } from "./reference.js";

const { fround } = Math;

/** What a code stands for: sign, 4 bits of exponent (bias 7), 3 of mantissa. */
export function fp8Value(code: number): number {
  const [exponent, mantissa] = [(code >> 3) & 15, code & 7];
  if (exponent === 15 && mantissa === 7) return NaN;
  const size = exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7);
  return code & 128 ? -size : size;
}

/** The code of the nearest value, halves to even; beyond 448 that of 448. */
function fp8Code(x: number): number {
  if (Number.isNaN(x)) return 0x7f;
  const sign = x < 0 || Object.is(x, -0) ? 128 : 0;
  const size = Math.min(Math.abs(x), 448);
  if (size < 2 ** -6) return sign + roundEven(size * 2 ** 9);
  const exponent = Math.floor(Math.log2(size));
  // Eight steps to an octave; a mantissa that rounds up to the next octave is the next code.
  return sign + 8 * (exponent + 7) + roundEven((size / 2 ** exponent - 1) * 8);
}

/** Codes [R, C] and a scale a row. */
function encoded(x: Numbers): [codes: Numbers, scales: Numbers] {
  const { rows, cols } = matrixOf(x);
  const [codes, scales] = [numbers("u8", [rows, cols]), numbers("f32", [rows])];
  for (let r = 0; r < rows; r++) {
    let amax = fround(1e-30);
    for (let c = 0; c < cols; c++) if (Math.abs(x.data[r * cols + c]!) > amax) amax = Math.abs(x.data[r * cols + c]!);
    const inverse = fround(448 / amax);
    for (let c = 0; c < cols; c++) codes.data[r * cols + c] = fp8Code(fround(x.data[r * cols + c]! * inverse));
    scales.data[r] = fround(amax / 448);
  }
  return [codes, scales];
}

/** Codes times the scale of their row. */
function decoded(codes: Numbers, scales: Numbers): Numbers {
  const { cols } = matrixOf(codes);
  return {
    ...numbers("f32", codes.shape),
    data: codes.data.map((code, i) => fp8Value(code) * scales.data[Math.floor(i / cols)]!),
  };
}

export const fp8: Record<string, Reference> = {
  quantize_fp8: ([x]) => encoded(x!),
  dequantize_fp8: ([q, scale], [code]) => [
    { ...decoded(q!, scale!), dtype: dtypes[code!]!, data: decoded(q!, scale!).data.map(fround) },
  ],
  linear_fp8: ([x, q, scale, bias]) => {
    const [a, w] = [decoded(...encoded(x!)), decoded(q!, scale!)];
    const [T, N, C] = [x!.shape[0]!, q!.shape[0]!, q!.shape[1]!];
    const y = numbers(x!.dtype, [T, N]);
    for (let t = 0; t < T; t++)
      for (let n = 0; n < N; n++) {
        let sum = bias?.data[n] ?? 0;
        for (let c = 0; c < C; c++) sum += a.data[t * C + c]! * w.data[n * C + c]!;
        y.data[t * N + n] = sum;
      }
    return [y];
  },
  linear_fp8_bwd: ([dy, q, scale]) => {
    const [T, N, C] = [dy!.shape[0]!, q!.shape[0]!, q!.shape[1]!];
    const scaled = { ...dy!, data: dy!.data.map((g, i) => fround(g * scale!.data[i % N]!)) };
    const [a, w] = [decoded(...encoded(scaled)), q!.data.map(fp8Value)];
    const dx = numbers(dy!.dtype, [T, C]);
    for (let t = 0; t < T; t++)
      for (let c = 0; c < C; c++) {
        let sum = 0;
        for (let n = 0; n < N; n++) sum += a.data[t * N + n]! * w[n * C + c]!;
        dx.data[t * C + c] = sum;
      }
    return [dx];
  },
};
