export { type DataBatch, IGNORED_LABEL, packDocuments } from "./batch.js";
export { type BatchSequence, Dataset, type TokenDocument } from "./dataset.js";
export type { ChatExample, CompletionExample, Example, TextExample, TrainMessage } from "./example.js";
export { type DataFormat, type DataFormatDefinition, defineFormat } from "./formats/define-format.js";
export { dataFormats } from "./formats/index.js";
export { loadDataset, loadExamples } from "./load-dataset.js";
export { type Mix, mixSources } from "./mixing.js";
export {
  type BatchesOptions,
  batchesSchema,
  type DataSource,
  dataSourceSchema,
  type LoadDatasetOptions,
  loadDatasetSchema,
  type ResolvedDatasetOptions,
} from "./options.js";
export { permutation } from "./order.js";
export { packBestFitDecreasing } from "./packing.js";
export { preview, type PreviewOptions } from "./preview.js";
export type { DatasetReport, LengthReport, LoadCounts, RejectedRow, SourceReport } from "./report.js";
export { rowFault } from "./row-fault.js";
export {
  perplexityWindows,
  type PerplexityWindow,
  perplexityWindowsSchema,
  type PerplexityWindowsOptions,
  tokenBlocks,
  tokenBlocksSchema,
  type TokenBlocksOptions,
  type TokenSource,
} from "./token-blocks.js";
export type { EncodedDocument } from "./tokenize-example.js";
