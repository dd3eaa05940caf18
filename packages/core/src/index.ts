export * from "./errors.js";
export { parseOptions } from "./options.js";
export { abortableFetch } from "./http.js";
export {
  openSafetensors,
  readSafetensorsHeader,
  safetensorsByteLength,
  type SafetensorsDType,
  safetensorsDType,
  type SafetensorsHandle,
  type SafetensorsHeader,
  type SafetensorsTensor,
  toSafetensorsDType,
} from "./safetensors.js";
export {
  type SafetensorsSource,
  writeSafetensors,
  WriteSafetensorsOptions,
  type SafetensorsWriteResult,
} from "./safetensors-write.js";
export { parseByteSize } from "./byte-size.js";
export { type DType, dtypeBytes, dtypes, type TypedArray } from "./dtype.js";
export {
  cudaProblem,
  currentDevice,
  defaultDevice,
  type Device,
  devices,
  onDevice,
  requireDevice,
  setDefaultDevice,
} from "./device.js";
export { empty, mapTensor, Tensor, tensor, tensorLike } from "./tensor.js";
export { keep, scope } from "./memory.js";
export {
  type CudaReport,
  type DoctorReport,
  memory,
  type MemoryReport,
  type MemoryTag,
  nativeDoctor,
  setExecution,
  setMemoryLimit,
  synchronize,
  trimMemory,
} from "./native.js";
export {
  chromeTrace,
  type ProfiledOp,
  type ProfileSummary,
  startProfile,
  stopProfile,
  summarizeProfile,
} from "./profile.js";
export {
  type Backward,
  type BackwardContext,
  backward,
  checkpoint,
  gradEnabled,
  needsGrad,
  noGrad,
  record,
  trainingForward,
} from "./autograd.js";
export { Plan, recordPlan } from "./plan.js";
export { randomStep, setRandomStep } from "./random-state.js";
export { full, randomNormal, type RandomOptions, randomUniform } from "./random.js";
export {
  add,
  cast,
  concatRows,
  gatherRows,
  mul,
  reshape,
  scale,
  silu,
  splitColumns,
  sub,
  sum,
} from "./ops/elementwise.js";
export {
  addRmsNorm,
  attention,
  type AttentionOptions,
  dropout,
  embedding,
  rmsNorm,
  rope,
  swiglu,
} from "./ops/layers.js";
export { linear, type LinearBase, type LowRank, matmul } from "./ops/linear.js";
export {
  crossEntropy,
  denseHead,
  type DistillLossOptions,
  type Head,
  linearCrossEntropy,
  linearDistill,
} from "./ops/loss.js";
export {
  concatColumns,
  type DenseStorage,
  type Fp8Storage,
  fuseLinears,
  Linear,
  type LinearDelta,
  type LinearFactory,
  LinearGroup,
  type LinearInit,
  type LinearShape,
  type LinearStorage,
  type LoraDelta,
  type Nf4Storage,
  type Placement,
  type Q8Storage,
  type W4Storage,
} from "./nn/linear.js";
export {
  AdamWOptions,
  createAdamW,
  createSchedule,
  createSgd,
  type NamedTensor,
  type Optimizer,
  type Schedule,
  ScheduleOptions,
  SgdOptions,
  type StepOptions,
} from "./optim.js";
/** Every op of the native table, bare (no gradients); see docs/ops.md. */
export * as native from "./gen/ops.js";
