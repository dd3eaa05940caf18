/**
 * The AutoAWQ "gemm" layout and our canonical W4 form, both ways. K in features, N out features, g group.
 * File: qweight i32 [K, N/8], qzeros i32 [K/g, N/8] (nibble i of a word holds column 8c + order[i]), scales f16 [K/g, N].
 * Canonical: q u8 [N, K/2] low nibble first along K, scales f32 [N, K/g], zeros u8 [N, K/g].
 * @see casper-hansen/AutoAWQ awq/modules/linear/gemm.py
 */
import { FormatError } from "@llm/core";

/** Column of a group of eight that nibble i of a word holds. */
const order = [0, 2, 4, 6, 1, 3, 5, 7] as const;

/** Canonical W4 tensors as plain arrays. */
export interface CanonicalW4 {
  outFeatures: number;
  inFeatures: number;
  group: number;
  q: Uint8Array;
  scales: Float32Array;
  zeros: Uint8Array;
}

/** quantization_config of config.json. */
export interface AwqConfig {
  bits: number;
  group: number;
  /** Linears that stay dense; a linear is meant when its name contains an entry. */
  notConverted: readonly string[];
}

/** Why a linear cannot be stored in this layout, or undefined when it can. */
export function awqObstacle(outFeatures: number, inFeatures: number, group: number): string | undefined {
  if (outFeatures % 8) return `its ${outFeatures} out features are not a multiple of 8`;
  if (inFeatures % group) return `its ${inFeatures} in features are not a multiple of the group size ${group}`;
  return undefined;
}

/** Reads `quantization_config` of a config.json. @throws {FormatError} another method, version or bit width than AWQ gemm with 4 bits */
export function parseAwqConfig(config: Record<string, unknown>): AwqConfig {
  const q = config["quantization_config"] as Record<string, unknown>;
  const fail = (key: string, expected: string): never => {
    throw new FormatError(
      `[config.json] quantization_config.${key} must be ${expected}, got ${JSON.stringify(q[key])}`,
      { key },
    );
  };
  if (q["quant_method"] !== "awq") fail("quant_method", '"awq"');
  const version = String(q["version"] ?? "gemm").toLowerCase();
  if (version !== "gemm") fail("version", '"gemm"');
  const bits = q["bits"] ?? q["w_bit"];
  if (bits !== 4) fail("bits", "4");
  const group = q["group_size"] ?? q["q_group_size"];
  if (typeof group !== "number" || group < 1) fail("group_size", "a positive number");
  if (q["zero_point"] === false) fail("zero_point", "true (symmetric weights are stored with zeros of 8)");
  return {
    bits: 4,
    group: group as number,
    notConverted: (q["modules_to_not_convert"] as string[] | null | undefined) ?? [],
  };
}

/** Reads one linear's file tensors. */
export function unpackAwq(
  qweight: Int32Array,
  qzeros: Int32Array,
  scales_GN: Float32Array,
  inFeatures: number,
  outFeatures: number,
  group: number,
): CanonicalW4 {
  const groups = inFeatures / group;
  const words = outFeatures / 8;
  const q = new Uint8Array((outFeatures * inFeatures) / 2);
  const zeros = new Uint8Array(outFeatures * groups);
  const scales = new Float32Array(outFeatures * groups);
  for (let k = 0; k < inFeatures; k++) {
    const shift = (k & 1) * 4;
    for (let c = 0; c < words; c++) {
      const word = qweight[k * words + c]!;
      for (let i = 0; i < 8; i++) q[((8 * c + order[i]!) * inFeatures + k) >> 1]! |= ((word >>> (4 * i)) & 15) << shift;
    }
  }
  for (let g = 0; g < groups; g++) {
    for (let c = 0; c < words; c++) {
      const word = qzeros[g * words + c]!;
      for (let i = 0; i < 8; i++) zeros[(8 * c + order[i]!) * groups + g] = (word >>> (4 * i)) & 15;
    }
    for (let n = 0; n < outFeatures; n++) scales[n * groups + g] = scales_GN[g * outFeatures + n]!;
  }
  return { outFeatures, inFeatures, group, q, scales, zeros };
}

/** Writes one linear in the file's layout; scales stay f32 [K/g, N], to be rounded to f16 by the caller. @throws {FormatError} see awqObstacle */
export function packAwq(w: CanonicalW4): { qweight: Int32Array; qzeros: Int32Array; scales_GN: Float32Array } {
  const { outFeatures, inFeatures, group } = w;
  const obstacle = awqObstacle(outFeatures, inFeatures, group);
  if (obstacle)
    throw new FormatError(`[packAwq] the AWQ gemm layout cannot hold this linear: ${obstacle}`, {
      outFeatures,
      inFeatures,
      group,
    });
  const groups = inFeatures / group;
  const words = outFeatures / 8;
  const qweight = new Int32Array(inFeatures * words);
  const qzeros = new Int32Array(groups * words);
  const scales_GN = new Float32Array(groups * outFeatures);
  for (let k = 0; k < inFeatures; k++) {
    const shift = (k & 1) * 4;
    for (let c = 0; c < words; c++) {
      let word = 0;
      for (let i = 0; i < 8; i++)
        word |= ((w.q[((8 * c + order[i]!) * inFeatures + k) >> 1]! >> shift) & 15) << (4 * i);
      qweight[k * words + c] = word;
    }
  }
  for (let g = 0; g < groups; g++) {
    for (let c = 0; c < words; c++) {
      let word = 0;
      for (let i = 0; i < 8; i++) word |= w.zeros[(8 * c + order[i]!) * groups + g]! << (4 * i);
      qzeros[g * words + c] = word;
    }
    for (let n = 0; n < outFeatures; n++) scales_GN[g * outFeatures + n] = w.scales[n * groups + g]!;
  }
  return { qweight, qzeros, scales_GN };
}

/** Rows (out features) of a linear, in the order given: parts of a fused tensor, or a fused tensor's own order. */
export function selectW4Rows(w: CanonicalW4, rows: Int32Array): CanonicalW4 {
  const width = w.inFeatures / 2;
  const groups = Math.ceil(w.inFeatures / w.group);
  const q = new Uint8Array(rows.length * width);
  const scales = new Float32Array(rows.length * groups);
  const zeros = new Uint8Array(rows.length * groups);
  rows.forEach((row, i) => {
    q.set(w.q.subarray(row * width, (row + 1) * width), i * width);
    scales.set(w.scales.subarray(row * groups, (row + 1) * groups), i * groups);
    zeros.set(w.zeros.subarray(row * groups, (row + 1) * groups), i * groups);
  });
  return { outFeatures: rows.length, inFeatures: w.inFeatures, group: w.group, q, scales, zeros };
}
