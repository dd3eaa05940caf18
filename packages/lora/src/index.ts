export { applyLora } from "./apply.js";
export { LoadLoraOptions, LoraOptions, MergeLoraOptions, SaveLoraOptions } from "./options.js";
export {
  type AdapterDelta,
  adapterNames,
  adapterParameters,
  setTrainableAdapters,
  withAdapters,
  withoutAdapters,
} from "./adapters.js";
export { saveLora } from "./save.js";
export { loadLora } from "./load.js";
export { mergeLora } from "./merge.js";
export { quantizeNf4, QuantizeNf4Options } from "./nf4.js";
export { quantizeFp8, QuantizeFp8Options } from "./fp8.js";
