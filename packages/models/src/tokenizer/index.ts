export { createTokenizer, loadTokenizer, type LoadTokenizerOptions } from "./load.js";
export { preTokenizerNames, type PreTokenizerName } from "./byte-level-vocabulary.js";
export { trainBpe, type TrainBpeOptions } from "./train.js";
