import { alpaca } from "./alpaca.js";
import { conversation } from "./conversation.js";
import type { DataFormat } from "./define-format.js";
import { messages } from "./messages.js";
import { promptCompletion } from "./prompt-completion.js";
import { queryResponse } from "./query-response.js";
import { sharegpt } from "./sharegpt.js";
import { text } from "./text.js";

/** Every built-in format by name. A new one is a file beside this and a line here. */
export const dataFormats: ReadonlyMap<string, DataFormat> = new Map(
  [alpaca, sharegpt, messages, conversation, queryResponse, promptCompletion, text].map((format) => [
    format.name,
    format,
  ]),
);
