export { gradientCheck, type GradientCheckOptions, type GradientError } from "./gradient-check.js";
export { byteTokenizer, packIds, randomDocuments, tinyModel, type TinyModelOptions } from "./tiny-model.js";
