import { native, noGrad, OptionsError, parseOptions, scope, type Tensor } from "@llm/core";
import { type CausalLM, createModel, type Decoder } from "@llm/models";
import * as v from "valibot";

const count = v.pipe(v.number(), v.integer(), v.minValue(1));

export const CreateStudentOptions = v.strictObject({
  /** Number of blocks. Default the teacher's; so for all sizes. */
  layers: v.optional(count),
  hiddenSize: v.optional(count),
  /** Inner width of the MLP, of gate and up each. */
  intermediateSize: v.optional(count),
  heads: v.optional(count),
  /** Key/value heads; divides `heads`. */
  kvHeads: v.optional(count),
  headDim: v.optional(count),
  /** Further keys of config.json, in its own names. */
  config: v.optional(v.record(v.string(), v.unknown()), {}),
  /**
   * "random": normal weights by `seed`. "layers": a copy of the teacher's evenly spaced blocks, the first and the last among them, and of
   * its embedding, norm and head; all widths must be the teacher's. @default "random"
   */
  init: v.optional(v.picklist(["random", "layers"]), "random"),
  /** Same seed and sizes: same weights. @default 0 */
  seed: v.optional(v.number(), 0),
  /** @default the teacher's, "f32" when that is f16 */
  dtype: v.optional(v.picklist(["f32", "bf16", "f16"])),
});
export type CreateStudentOptions = v.InferInput<typeof CreateStudentOptions>;

/** config.json's names of sizes. */
const keys = {
  layers: "num_hidden_layers",
  hiddenSize: "hidden_size",
  intermediateSize: "intermediate_size",
  heads: "num_attention_heads",
  kvHeads: "num_key_value_heads",
  headDim: "head_dim",
} as const;

/** Teacher's block for each of the student's: evenly spaced, ends included. A single block is the first. */
export function chosenLayers(teacher: number, student: number): number[] {
  return Array.from({ length: student }, (_, i) =>
    student === 1 ? 0 : Math.round((i * (teacher - 1)) / (student - 1)),
  );
}

/**
 * A smaller model of the teacher's architecture and tokenizer. The teacher is not changed and shares no memory with it.
 * @throws {OptionsError} init "layers" with other widths or more layers than the teacher, or a size that the architecture does not have
 * @throws {FormatError | UnsupportedError} sizes that the architecture refuses
 * @see Sanh et al. 2019 (DistilBERT), arXiv:1910.01108, section 3, for starting from the teacher's layers
 */
export function createStudent(teacher: CausalLM, options: CreateStudentOptions = {}): CausalLM {
  const o = parseOptions(CreateStudentOptions, options, "createStudent");
  const { quantization_config: _quantization, torch_dtype: _torch, dtype: _dtype, ...kept } = teacher.config;
  const config: Record<string, unknown> = kept;
  const modelType = String(config["model_type"]);
  for (const [option, key] of Object.entries(keys) as [keyof typeof keys, string][]) {
    const size = o[option];
    if (size === undefined) continue;
    if (modelType === "qwen" && option === "kvHeads")
      throw new OptionsError('[createStudent] kvHeads: model_type "qwen" has a key/value head for each query head');
    // Qwen 1 counts gate and up together, and names the head width otherwise.
    if (modelType === "qwen" && option === "headDim") config["kv_channels"] = size;
    else config[key] = modelType === "qwen" && option === "intermediateSize" ? 2 * size : size;
  }
  Object.assign(config, o.config);
  const layers = Number(config["num_hidden_layers"]);
  const types = config["layer_types"];
  if (Array.isArray(types) && types.length !== layers)
    config["layer_types"] = chosenLayers(types.length, layers).map((i) => types[i]);
  const dtype = o.dtype ?? (teacher.dtype === "bf16" ? "bf16" : "f32");
  if (o.init === "random")
    return createModel(config, teacher.tokenizer, { seed: o.seed, dtype, device: teacher.device });

  // Weights are all overwritten: none need to be drawn.
  const student = createModel(config, teacher.tokenizer, { dtype, initStd: 0, device: teacher.device });
  const [a, b] = [teacher.spec, student.spec];
  const widths = [
    "vocabSize",
    "hiddenSize",
    "intermediateSize",
    "heads",
    "kvHeads",
    "headDim",
    "qkNorm",
    "qkvBias",
    "oBias",
    "mlpBias",
    "tieWordEmbeddings",
  ] as const;
  const other = widths.find((key) => a[key] !== b[key]);
  if (other || b.layers > a.layers) {
    student.dispose();
    throw new OptionsError(
      other
        ? `[createStudent] init "layers" copies the teacher's blocks, so ${other} must be the teacher's ${String(a[other])}, got ${String(b[other])}; use init "random"`
        : `[createStudent] init "layers": expected at most the teacher's ${a.layers} layers, got ${b.layers}`,
    );
  }
  copyLayers(teacher.decoder, student.decoder);
  return student;
}

function copyLayers(teacher: Decoder, student: Decoder): void {
  const copy = (to: Tensor, from: Tensor): void => native.copy(to, from);
  noGrad(() => {
    copy(student.embed.weight, teacher.embed.weight);
    copy(student.norm.weight, teacher.norm.weight);
    const chosen = chosenLayers(teacher.blocks.length, student.blocks.length);
    const linears = [
      ...student.blocks.flatMap((b, i) =>
        b.linears().map((l, j) => [l, teacher.blocks[chosen[i]!]!.linears()[j]!] as const),
      ),
      ...(student.head && teacher.head ? [[student.head, teacher.head] as const] : []),
    ];
    for (const [to, from] of linears) {
      const { weight } = to.storage as { weight: Tensor };
      // Quantized teachers and ones with adapters give the weights that they compute with.
      scope(() => copy(weight, from.mergedWeight(weight.dtype)));
      if (to.bias && from.bias) copy(to.bias, from.bias);
    }
    student.blocks.forEach((b, i) =>
      b.norms().forEach((n, j) => copy(n.weight, teacher.blocks[chosen[i]!]!.norms()[j]!.weight)),
    );
  });
}
