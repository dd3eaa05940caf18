/** An ONNX model of one com.microsoft MatMulNBits node, written as protobuf by hand: the peer of the W4 GEMV bench. */

/** Protobuf field of a varint, of bytes, or of a nested message. */
function field(number: number, value: number | Uint8Array | string): Uint8Array {
  const varint = (n: number): number[] => {
    const out: number[] = [];
    for (let rest = n; ; rest = Math.floor(rest / 128)) {
      if (rest < 128) {
        out.push(rest);
        return out;
      }
      out.push((rest % 128) | 128);
    }
  };
  if (typeof value === "number") return Uint8Array.from([...varint(number * 8), ...varint(value)]);
  const bytes = typeof value === "string" ? new TextEncoder().encode(value) : value;
  return join([Uint8Array.from([...varint(number * 8 + 2), ...varint(bytes.length)]), bytes]);
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}

const message = (...fields: Uint8Array[]): Uint8Array => join(fields);
const int = (name: string, value: number): Uint8Array =>
  field(5, message(field(1, name), field(3, value), field(20, 2)));
const shape = (dims: readonly (number | string)[]): Uint8Array =>
  message(...dims.map((d) => field(1, typeof d === "number" ? message(field(1, d)) : message(field(2, d)))));
const value = (name: string, dims: readonly (number | string)[]): Uint8Array =>
  message(field(1, name), field(2, message(field(1, message(field(1, 1), field(2, shape(dims)))))));
/** data_type: 1 = f32, 2 = u8. */
const tensor = (name: string, dataType: number, dims: readonly number[], raw: Uint8Array): Uint8Array =>
  message(...dims.map((d) => field(1, d)), field(2, dataType), field(8, name), field(9, raw));

/**
 * `count` independent products x W_iᵀ of one input x [M, K]; W_i in 4 bits, groups of `block`, accuracy level 4 (int8 activations).
 * Outputs y0 … y(count−1) [M, N].
 */
export function matMulNBitsModel(
  count: number,
  K: number,
  N: number,
  block: number,
  accuracyLevel: number,
): Uint8Array {
  const groups = K / block;
  const nodes: Uint8Array[] = [];
  const initializers: Uint8Array[] = [];
  const outputs: Uint8Array[] = [];
  for (let i = 0; i < count; i++) {
    // No two matrices alike: equal ones could be read once for all.
    const q = new Uint8Array((N * K) / 2);
    for (let j = 0; j < q.length; j++) q[j] = (j * 37 + i * 11) & 255;
    const scales = new Float32Array(N * groups).fill(0.01 + i / 10_000);
    const zeros = new Uint8Array((N * groups) / 2).fill(0x88);
    initializers.push(
      field(5, tensor(`b${i}`, 2, [N, groups, block / 2], q)),
      field(5, tensor(`s${i}`, 1, [N * groups], new Uint8Array(scales.buffer))),
      field(5, tensor(`z${i}`, 2, [(N * groups) / 2], zeros)),
    );
    nodes.push(
      field(
        1,
        message(
          ...["x", `b${i}`, `s${i}`, `z${i}`].map((name) => field(1, name)),
          field(2, `y${i}`),
          field(3, `n${i}`),
          field(4, "MatMulNBits"),
          int("K", K),
          int("N", N),
          int("bits", 4),
          int("block_size", block),
          int("accuracy_level", accuracyLevel),
          field(7, "com.microsoft"),
        ),
      ),
    );
    outputs.push(field(12, value(`y${i}`, ["M", N])));
  }
  const graph = message(...nodes, field(2, "g"), ...initializers, field(11, value("x", ["M", K])), ...outputs);
  return message(
    field(1, 9),
    field(7, graph),
    field(8, message(field(1, ""), field(2, 21))),
    field(8, message(field(1, "com.microsoft"), field(2, 1))),
  );
}
