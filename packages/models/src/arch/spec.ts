/** What a decoder is, whatever its config.json calls things. */
import type { RopeSpec } from "../rope.js";

/** Sizes and variants of a decoder-only transformer with pre-norm blocks: RMS norm, rotary GQA attention, SwiGLU. */
export interface DecoderSpec {
  /** Rows of the embedding; may exceed the tokenizer's vocabulary. */
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  rmsNormEps: number;
  rope: RopeSpec;
  qkvBias: boolean;
  oBias: boolean;
  mlpBias: boolean;
  /** RMS norm of each query and key head before the rotation (Qwen3). */
  qkNorm: boolean;
  /** The output projection is the embedding. */
  tieWordEmbeddings: boolean;
  /** Sliding window by layer; 0 = full attention. */
  windows: readonly number[];
  maxPositions: number;
}

/** Weight names of one layer in the checkpoint. A list of parts means: rows of one fused tensor. */
export interface LayerNames {
  inputNorm: string;
  q: string;
  k: string;
  v: string;
  o: string;
  qNorm?: string;
  kNorm?: string;
  postNorm: string;
  gate: string;
  up: string;
  down: string;
}

/** A checkpoint tensor that holds several linears' rows. */
export interface FusedRows {
  /** Name without ".weight" / ".bias". */
  name: string;
  /** Linear name → its row numbers in the fused tensor, in order. */
  parts: { linear: string; rows: Int32Array }[];
}

/** One `model_type`: how its config.json is read and what its checkpoints call their tensors. */
export interface ModelDefinition {
  /** `model_type` of config.json. */
  modelType: string;
  /** For reports and for config.json of new models. */
  architecture: string;
  /** Reads and checks config.json. @throws {FormatError | UnsupportedError} unknown flags, unsupported variants */
  parse(config: Record<string, unknown>): DecoderSpec;
  /** Names in the checkpoint. */
  names: { embed: string; norm: string; head: string; layer(index: number): LayerNames };
  /** Fused tensors of a layer, for checkpoints that store q, k, v together. */
  fused?(spec: DecoderSpec, layer: number): FusedRows[];
  /** Names of the linears that adapters call by another name (PEFT targets), e.g. wo → o_proj; empty when equal. */
}
