export { quantize, QuantizedModel } from "./quantize.js";
export {
  type CalibrationBatch,
  type CalibrationData,
  type CalibrationSource,
  QuantizeOptions,
  type QuantizeProgress,
} from "./options.js";
export type { LinearReport, QuantizationReport } from "./report.js";
export { saveQuantized } from "./save.js";
export { type BlockScales, foldScales } from "./fold.js";
export { comparePerplexity, type Perplexity, type PerplexityDifference, perplexityOf } from "./perplexity.js";
