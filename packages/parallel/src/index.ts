export { train } from "./train.js";
export { TrainRun } from "./train-run.js";
export {
  TrainCheckpointOptions,
  TrainCurveOptions,
  TrainEvaluationOptions,
  TrainOptions,
  TrainSampleOptions,
  TrainScheduleOptions,
} from "./options.js";
export type { EvaluationReport, StepReport, TrainResult, TrainSample } from "./report.js";
export {
  type BatchRoom,
  batchWeight,
  causalLanguageModel,
  type Objective,
  type ObjectiveContext,
  type ObjectiveResult,
  type Replay,
  type ReplayableObjective,
  type TrainableModel,
} from "./objective.js";
export { type BatchRequest, type BatchSource, splitBatch, type TrainData } from "./batch-source.js";
export { adapterTensors, chooseParameters, type ParameterChoice } from "./parameters.js";
export { listCheckpoints } from "./checkpoint.js";
export { type CurvePoint, lossCurveSvg } from "./loss-curve.js";
