export { byteTokenizer, packIds, randomDocuments, tinyModel, type TinyModelOptions } from "./tiny-model.js";
