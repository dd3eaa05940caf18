export type * from "./types.js";
export {
  CausalLM,
  type CausalLMInit,
  createModel,
  CreateModelOptions,
  encodePrompt,
  loadModel,
  LoadModelOptions,
  modelSpec,
  type SavedModel,
  SaveModelOptions,
  sequenceInputs,
} from "./model.js";
export {
  Block,
  type BlockParts,
  createInputs,
  Decoder,
  type DecoderInputs,
  type DecoderParts,
  type ForwardOptions,
  type Norm,
} from "./decoder.js";
export { findModelDefinition, modelDefinitions } from "./arch/index.js";
export type { DecoderSpec, FusedRows, LayerNames, ModelDefinition } from "./arch/spec.js";
export { parseRope, ropeDependsOnLength, ropeFrequencies, type RopeSpec, ropeTables } from "./rope.js";
export { ContiguousCache } from "./attention-cache.js";
export {
  type AwqConfig,
  awqObstacle,
  type CanonicalW4,
  packAwq,
  parseAwqConfig,
  selectW4Rows,
  unpackAwq,
} from "./awq-format.js";
export { type CheckpointOptions, type CheckpointPlan, type DenseInFile, planCheckpoint } from "./checkpoint.js";
export { Generation } from "./generate.js";
export {
  GenerateOptionsSchema,
  parseGenerateOptions,
  type ResolvedGenerateOptions,
  samplingParameters,
  seedWords,
} from "./generate-options.js";
export * from "./tokenizer/index.js";
export { encodeChat } from "./chat-prompt.js";
export {
  namedTemplates,
  renderChatTemplate,
  type NamedTemplate,
  type RenderChatTemplateOptions,
} from "./chat-template.js";
export { pullDataset, pullModel, resolveModelFolder } from "./hub/pull.js";
export { PullOptions, type PullProgress } from "./hub/options.js";
export { StopMatcher } from "./stop.js";
export {
  processLogits,
  type RankedToken,
  sampleToken,
  type SamplingHistory,
  SamplingOptions,
  topLogprobs,
} from "./sampling.js";
export { philox4x32, uniform01 } from "./philox.js";
export { isTorchTensor, readTorchFile, type TorchDType, type TorchTensor, type TorchValue } from "./torch-file.js";
export { convertLlama2cCheckpoint } from "./llama2c.js";
