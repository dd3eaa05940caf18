import type { ChatMessage, Tool } from "@llm/models";

/** A message with its say in the loss. */
export interface TrainMessage extends ChatMessage {
  /**
   * Overrides `trainOn` for this message: `true` = weight 1, `false` = not learned, a number ≥ 0 = that weight on each of
   * its tokens.
   */
  loss?: boolean | number;
}

/** A conversation, rendered by the chat template. */
export interface ChatExample {
  kind: "chat";
  messages: TrainMessage[];
  tools?: Tool[];
}

/** A document learned whole: begin token (if the tokenizer has one), text, end token. */
export interface TextExample {
  kind: "text";
  text: string;
}

/** A prompt and how it goes on, joined as they are, without a chat template; the completion and its end token are learned. */
export interface CompletionExample {
  kind: "completion";
  prompt: string;
  completion: string;
}

/** What a row of any format becomes. */
export type Example = ChatExample | TextExample | CompletionExample;
