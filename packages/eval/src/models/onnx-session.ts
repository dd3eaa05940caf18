import { FormatError, IoError, ShapeError, UnsupportedError } from "@llm/core";

/** The part of onnxruntime-node that is used; so no type of an optional package reaches the declarations. */
export interface OnnxTensor {
  readonly type: string;
  readonly data: ArrayLike<number | bigint>;
  readonly dims: readonly number[];
}

interface ValueMetadata {
  readonly name: string;
  readonly isTensor: boolean;
  readonly type?: string;
  /** Numbers, and names of free dimensions. */
  readonly shape?: readonly (number | string)[];
}

interface InferenceSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata?: readonly ValueMetadata[];
  run(feeds: Record<string, OnnxTensor>): Promise<Record<string, OnnxTensor>>;
  release?(): Promise<void>;
}

interface OnnxRuntime {
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => OnnxTensor;
  readonly InferenceSession: { create(path: string, options?: Record<string, unknown>): Promise<InferenceSession> };
}

/** Imports onnxruntime-node. @throws {UnsupportedError} it is not installed */
async function importRuntime(): Promise<OnnxRuntime> {
  try {
    const module = (await import("onnxruntime-node")) as unknown as OnnxRuntime & { default?: OnnxRuntime };
    return module.InferenceSession ? module : module.default!;
  } catch (error) {
    throw new UnsupportedError(
      `[onnxModel] expected the optional package onnxruntime-node (npm install onnxruntime-node): ${(error as Error).message}`,
      { package: "onnxruntime-node" },
      error,
    );
  }
}

/** What the decoder knows after some tokens: its cache tensors, or (graphs without a cache) the tokens themselves. */
export interface OnnxState {
  readonly length: number;
  readonly tensors: Readonly<Record<string, OnnxTensor>>;
  readonly ids: readonly number[];
}

/** Logits after some tokens, one row of `vocabSize` numbers (f32) a token; only the last `rows` tokens have one. */
export interface OnnxLogits {
  readonly rows: number;
  readonly vocabSize: number;
  /** Logits after the i-th of the rows; a fresh array. */
  row(i: number): Float32Array;
}

const ELEMENTS: Record<string, (length: number) => unknown> = {
  float32: (length) => new Float32Array(length),
  float16: (length) => new Uint16Array(length),
  int8: (length) => new Int8Array(length),
  uint8: (length) => new Uint8Array(length),
};

/**
 * A decoder graph as transformers' exporters and onnxruntime-genai write it: `input_ids` [B, T], optionally
 * `attention_mask` [B, past + T], `position_ids` [B, T] and states `past…` (keys and values of any layout whose length is a free
 * dimension, or fixed states such as convolutions), giving `logits` [B, T, V] or [B, 1, V] and the states as `present…`.
 * B is always 1. Ids, masks and positions are int32 or int64, logits and states f32 or f16, as the graph declares.
 */
export class OnnxDecoder {
  private readonly runtime: OnnxRuntime;
  private readonly session: InferenceSession;
  private readonly inputs: Map<string, ValueMetadata>;
  /** State input to state output. */
  private readonly states: Map<string, string>;
  readonly initial: OnnxState;

  private constructor(runtime: OnnxRuntime, session: InferenceSession, path: string) {
    this.runtime = runtime;
    this.session = session;
    if (!session.inputMetadata)
      throw new UnsupportedError("[onnxModel] expected an onnxruntime-node that describes inputs (1.22 or later)");
    this.inputs = new Map(session.inputMetadata.map((input) => [input.name, input]));
    const ids = this.inputs.get("input_ids");
    if (!ids || !session.outputNames.includes("logits"))
      throw new UnsupportedError(`[onnxModel] ${path}: expected input_ids and logits, got ${this.names()}`, { path });
    if (ids.shape?.length !== 2)
      throw new UnsupportedError(
        `[onnxModel] ${path}: input_ids: expected [batch, sequence], got [${ids.shape?.join(", ") ?? ""}]; paged and packed graphs need their own engine`,
        { path },
      );
    this.states = new Map();
    const tensors: Record<string, OnnxTensor> = {};
    for (const input of this.inputs.values()) {
      if (KNOWN.has(input.name)) continue;
      if (!input.name.startsWith("past"))
        throw new UnsupportedError(`[onnxModel] ${path}: input "${input.name}" is not known; got ${this.names()}`, {
          path,
          input: input.name,
        });
      const output = [input.name.replace(/^past_key_values/, "present"), input.name.replace(/^past/, "present")].find(
        (name) => session.outputNames.includes(name),
      );
      if (output === undefined)
        throw new UnsupportedError(
          `[onnxModel] ${path}: input "${input.name}" has no output present…; got ${this.names()}`,
          { path },
        );
      this.states.set(input.name, output);
      tensors[input.name] = this.emptyState(input, ids.shape[0]!, path);
    }
    this.initial = { length: 0, tensors, ids: [] };
  }

  /**
   * @throws {UnsupportedError} onnxruntime-node is absent, or the graph is no decoder of this form
   * @throws {IoError | FormatError} the file cannot be read or run
   */
  static async open(path: string, sessionOptions: Record<string, unknown>): Promise<OnnxDecoder> {
    const runtime = await importRuntime();
    let session: InferenceSession;
    try {
      session = await runtime.InferenceSession.create(path, sessionOptions);
    } catch (error) {
      throw new IoError(`[onnxModel] ${path}: expected an ONNX model: ${(error as Error).message}`, { path }, error);
    }
    return new OnnxDecoder(runtime, session, path);
  }

  private names(): string {
    return `${this.session.inputNames.join(", ")} -> ${this.session.outputNames.join(", ")}`;
  }

  /** Free dimensions are the batch (1) and the length (0); a fixed one keeps its size. */
  private emptyState(input: ValueMetadata, batch: number | string, path: string): OnnxTensor {
    const make = ELEMENTS[input.type ?? ""];
    if (!make || !input.shape)
      throw new UnsupportedError(
        `[onnxModel] ${path}: ${input.name}: expected float32 or float16, got ${input.type ?? "no tensor"}`,
        { path },
      );
    let needsBatch = typeof batch === "string";
    const named = needsBatch && input.shape.includes(batch);
    const dims = input.shape.map((size) => {
      if (typeof size === "number") return size;
      if (!needsBatch || (named && size !== batch)) return 0;
      needsBatch = false;
      return 1;
    });
    return new this.runtime.Tensor(input.type!, make(dims.reduce((product, size) => product * size, 1)), dims);
  }

  private integers(name: string, values: readonly number[], dims: readonly number[]): OnnxTensor {
    const { type } = this.inputs.get(name)!;
    if (type === "int64") return new this.runtime.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
    if (type === "int32") return new this.runtime.Tensor("int32", Int32Array.from(values), dims);
    if (type === "float32") return new this.runtime.Tensor("float32", Float32Array.from(values), dims);
    throw new UnsupportedError(`[onnxModel] ${name}: expected int32, int64 or float32, got ${type ?? "no tensor"}`);
  }

  /** Runs the decoder over further tokens. The state given stays valid, so that one prefix can be continued in many ways. */
  async forward(state: OnnxState, newIds: ArrayLike<number>): Promise<{ logits: OnnxLogits; state: OnnxState }> {
    const added = Array.from(newIds);
    const cached = this.states.size > 0;
    const tokens = cached ? added : [...state.ids, ...added];
    const past = cached ? state.length : 0;
    const total = past + tokens.length;
    const feeds: Record<string, OnnxTensor> = {
      ...state.tensors,
      input_ids: this.integers("input_ids", tokens, [1, tokens.length]),
    };
    if (this.inputs.has("attention_mask"))
      feeds["attention_mask"] = this.integers("attention_mask", new Array<number>(total).fill(1), [1, total]);
    if (this.inputs.has("position_ids"))
      feeds["position_ids"] = this.integers(
        "position_ids",
        tokens.map((_, i) => past + i),
        [1, tokens.length],
      );
    if (this.inputs.has("use_cache_branch"))
      feeds["use_cache_branch"] = new this.runtime.Tensor("bool", Uint8Array.of(past > 0 ? 1 : 0), [1]);
    for (const name of KEEP) if (this.inputs.has(name)) feeds[name] = this.integers(name, [0], []);
    let outputs: Record<string, OnnxTensor>;
    try {
      outputs = await this.session.run(feeds);
    } catch (error) {
      throw new FormatError(
        `[onnxModel] the graph failed on ${tokens.length} tokens after ${past}: ${(error as Error).message}`,
        {},
        error,
      );
    }
    const logits = readLogits(outputs["logits"], tokens.length, added.length);
    const tensors = Object.fromEntries([...this.states].map(([input, output]) => [input, outputs[output]!]));
    return { logits, state: { length: state.length + added.length, tensors, ids: cached ? [] : tokens } };
  }

  async release(): Promise<void> {
    await this.session.release?.();
  }
}

const KEEP = ["num_logits_to_keep", "logits_to_keep"] as const;
const KNOWN = new Set<string>(["input_ids", "attention_mask", "position_ids", "use_cache_branch", ...KEEP]);

function readLogits(tensor: OnnxTensor | undefined, tokens: number, added: number): OnnxLogits {
  const dims = tensor?.dims ?? [];
  const [batch, rows, vocabSize] = dims;
  if (!tensor || dims.length !== 3 || batch !== 1 || (rows !== tokens && rows !== 1))
    throw new ShapeError(`[onnxModel] logits: expected [1, ${tokens} or 1, V], got [${dims.join(", ")}]`, { dims });
  const { data, type } = tensor;
  if (type !== "float32" && type !== "float16")
    throw new UnsupportedError(`[onnxModel] logits: expected float32 or float16, got ${type}`);
  const bits = type === "float16" && data instanceof Uint16Array;
  const kept = Math.min(rows, added);
  return {
    rows: kept,
    vocabSize: vocabSize!,
    row(i) {
      const start = (rows - kept + i) * vocabSize!;
      const out = new Float32Array(vocabSize!);
      for (let j = 0; j < out.length; j++) {
        const value = Number(data[start + j]!);
        out[j] = bits ? halfToFloat(value) : value;
      }
      return out;
    },
  };
}

/** IEEE 754 binary16 to number. */
export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
