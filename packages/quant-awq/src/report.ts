/** What quantization did to a linear. */
export interface LinearReport {
  /** Hugging Face name. */
  name: string;
  /** How it is stored now. */
  stored: "w4" | "q8" | "dense";
  /** Weights that share a scale; 0 when dense. */
  group: number;
  /** Ratio r of the scales found for its input; null = no scaling (always so for "rtn"). */
  ratio: number | null;
  /**
   * Mean squared error of the inspected module's output over the calibration tokens when only this linear and those that share its input
   * are rounded to nearest: the attention (o included) for q, k, v; the MLP for gate and up; the linear itself for o and down. Undefined
   * without calibration data ("rtn"), and for what is not in 4 bits.
   */
  errorRtn: number | undefined;
  /** The same with the scales and clips that were found; never above `errorRtn`. */
  errorAwq: number | undefined;
  /** Share of its groups whose range was clipped, in [0, 1]. */
  clipped: number;
  /** Why a linear that was meant to be quantized stayed dense. */
  reason?: string;
}

/** What `quantize` did. */
export interface QuantizationReport {
  method: "rtn" | "awq";
  group: number;
  symmetric: boolean;
  /** Tokens and blocks that the activations were measured on. */
  calibration: { tokens: number; blocks: number } | undefined;
  linears: LinearReport[];
  /** Bytes of all weights before and after. */
  bytesBefore: number;
  bytesAfter: number;
}
