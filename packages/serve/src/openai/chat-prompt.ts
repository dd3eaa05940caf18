import { LlmError } from "@llm/core";
import type { ChatMessage, TokenIds, Tokenizer } from "@llm/models";
import { ApiError, badField, unsupportedField } from "./errors.js";
import type { ChatRequest, WireMessage } from "./requests.js";

/**
 * A conversation → token ids by the model's own template.
 *
 * Text of users and tools never becomes control tokens: where it spells a special token (`<|im_end|>`), the template is
 * rendered with a placeholder there, and that stretch is encoded as plain text.
 * @throws {ApiError} 400 for messages that the API forbids or the template cannot render
 */
export function encodeChat(tokenizer: Tokenizer, request: ChatRequest): TokenIds {
  const guard = new SpecialTokenGuard(tokenizer);
  const messages = request.messages.map((message, i) => toChatMessage(message, `messages[${i}]`, guard));
  let text: string;
  try {
    text = tokenizer.applyChatTemplate(messages, {
      addGenerationPrompt: true,
      tools:
        request.tool_choice === "none"
          ? undefined
          : request.tools?.map(({ type, function: { name, description, parameters } }) => ({
              type,
              function: {
                name,
                ...(description !== undefined && { description }),
                ...(parameters !== undefined && { parameters }),
              },
            })),
      variables: request.chat_template_kwargs,
    });
  } catch (error) {
    if (LlmError.isInstance(error, "UNSUPPORTED"))
      throw new ApiError(400, error.message, { param: "messages", code: "no_chat_template", cause: error });
    throw new ApiError(400, `the model's chat template refuses these messages: ${(error as Error).message}`, {
      param: "messages",
      code: "chat_template",
      cause: error,
    });
  }
  return guard.encode(text);
}

function toChatMessage(message: WireMessage, where: string, guard: SpecialTokenGuard): ChatMessage {
  const { role, name, reasoning_content, tool_calls, tool_call_id } = message;
  let content = plainText(message, where);
  if (content === null && !(role === "assistant" && tool_calls != null))
    throw badField(
      `${where}.content`,
      `${where}: a message of role ${role} needs content`,
      "missing_required_parameter",
    );
  if (role === "tool" && tool_call_id == null)
    throw badField(
      `${where}.tool_call_id`,
      `${where}: a message of role tool needs tool_call_id`,
      "missing_required_parameter",
    );
  if (tool_calls != null && role !== "assistant")
    throw badField(`${where}.tool_calls`, `${where}: only an assistant's message has tool_calls`);
  if (content !== null && (role === "user" || role === "tool")) content = guard.protect(content);
  return {
    role: role === "developer" ? "system" : role,
    content,
    ...(name != null && { name }),
    ...(reasoning_content != null && { reasoning_content }),
    ...(tool_call_id != null && { tool_call_id }),
    ...(tool_calls != null && {
      tool_calls: tool_calls.map((call, i) => ({
        ...(call.id !== undefined && { id: call.id }),
        type: "function" as const,
        function: {
          name: call.function.name,
          arguments: parseArguments(call.function.arguments, `${where}.tool_calls[${i}].function.arguments`),
        },
      })),
    }),
  };
}

function plainText({ content }: WireMessage, where: string): string | null {
  if (content == null || typeof content === "string") return content ?? null;
  const texts = content.map((part, i) => {
    const param = `${where}.content[${i}]`;
    if (part.type !== "text")
      throw unsupportedField(`${param}.type`, `${param}: only parts of type "text" are supported, got "${part.type}"`);
    if (part.text === undefined)
      throw badField(`${param}.text`, `missing field '${param}.text'`, "missing_required_parameter");
    return part.text;
  });
  return texts.join("\n");
}

/** Templates write arguments as JSON themselves, so they want the object, not its text. */
function parseArguments(value: string | Record<string, unknown>, param: string): Record<string, unknown> {
  if (typeof value !== "string") return value;
  let parsed: unknown;
  try {
    parsed = JSON.parse(value);
  } catch (error) {
    throw badField(param, `${param}: ${(error as Error).message}`);
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed))
    throw badField(param, `${param}: must be the text of a JSON object`);
  return parsed as Record<string, unknown>;
}

/** Keeps special tokens that a user wrote from being recognised. */
class SpecialTokenGuard {
  readonly #tokenizer: Tokenizer;
  readonly #specials: RegExp | undefined;
  /** Unguessable, so that no text can imitate a placeholder. */
  readonly #nonce = crypto.randomUUID().replaceAll("-", "");
  readonly #protected: string[] = [];

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    const texts = [...tokenizer.specialTokens.keys()].filter((text) => text !== "").sort((a, b) => b.length - a.length);
    this.#specials =
      texts.length === 0
        ? undefined
        : new RegExp(texts.map((text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&")).join("|"), "g");
  }

  protect(text: string): string {
    if (this.#specials === undefined) return text;
    return text.replace(this.#specials, (special) => `\u27e8${this.#nonce}${this.#protected.push(special) - 1}\u27e9`);
  }

  encode(text: string): TokenIds {
    if (this.#protected.length === 0) return this.#tokenizer.encode(text, { addSpecialTokens: false });
    const pieces = text.split(new RegExp(`\u27e8${this.#nonce}(\\d+)\u27e9`));
    const encoded = pieces.map((piece, i) =>
      i % 2 === 0
        ? this.#tokenizer.encode(piece, { addSpecialTokens: false })
        : this.#tokenizer.encode(this.#protected[Number(piece)]!, { addSpecialTokens: false, parseSpecial: false }),
    );
    const ids = new Int32Array(encoded.reduce((sum, { length }) => sum + length, 0));
    let offset = 0;
    for (const part of encoded) {
      ids.set(part, offset);
      offset += part.length;
    }
    return ids;
  }
}
