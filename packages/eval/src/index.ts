export { canonicalJson, defineTask, sha256, taskHash } from "./task.js";
export type {
  EvaluatedModel,
  Metric,
  MetricSample,
  PredictionView,
  PromptStyle,
  ScoredItem,
  Task,
  TaskContext,
  TaskItem,
} from "./task.js";
export { evaluate, evaluateOptionsSchema, makeResults, meanMetrics } from "./evaluate.js";
export type { Cell, EvaluateOptions, EvaluateProgress, ItemRecord, ResultRow, Results } from "./evaluate.js";
export { compare } from "./compare.js";
export type { Comparison } from "./compare.js";
export { modelFingerprint } from "./fingerprint.js";
export { erfc, meanEstimate, twoSidedPValue, weightedMeanEstimate } from "./statistics.js";
export type { Estimate } from "./statistics.js";

export { encodeOpen, generateText, resolvePromptStyle, scoreContinuations, scoreTexts } from "./ask.js";
export type { ContinuationScore, Generation, StoredPrompt, TextScore } from "./ask.js";
export { readRows } from "./rows.js";
export type { Row } from "./rows.js";

export { customSet } from "./tasks/custom-set.js";
export { gsm8k, gsm8kOptionsSchema } from "./tasks/gsm8k.js";
export type { Gsm8kItem, Gsm8kOptions } from "./tasks/gsm8k.js";
export { multipleChoice, multipleChoiceOptionsSchema } from "./tasks/multiple-choice.js";
export type { MultipleChoiceItem, MultipleChoiceOptions, MultipleChoicePrediction } from "./tasks/multiple-choice.js";
export { perplexity, perplexityOptionsSchema } from "./tasks/perplexity.js";
export type { PerplexityItem, PerplexityOptions, PerplexityPrediction } from "./tasks/perplexity.js";
export { questionAnswer, questionAnswerOptionsSchema } from "./tasks/question-answer.js";
export type { QuestionAnswerItem, QuestionAnswerOptions } from "./tasks/question-answer.js";
export type { GeneratedPrediction } from "./tasks/generation.js";

export { firstLine, normalizeAnswer } from "./extract/answer-text.js";
export { extractNumber, referenceNumber, sameNumber } from "./extract/final-number.js";
export type { NumberExtractor } from "./extract/final-number.js";
export { editDistance, extractOptionLabel, stripReasoning } from "./extract/option-label.js";

export { onnxModel, onnxModelOptionsSchema } from "./models/onnx.js";
export type { OnnxModel, OnnxModelOptions } from "./models/onnx.js";
export { openaiModel, openaiModelOptionsSchema } from "./models/openai.js";
export type { OpenaiModelOptions } from "./models/openai.js";

export { toCsv } from "./report/csv.js";
export { toHtml } from "./report/html.js";
export { toJson } from "./report/json.js";
export { displayWidth, formatMetric, formatNumber, formatTable } from "./report/table.js";
export { writeReport, writeReportOptionsSchema } from "./report/write-report.js";
export type { WriteReportOptions } from "./report/write-report.js";
