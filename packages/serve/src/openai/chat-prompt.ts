import { LlmError } from "@llm/core";
import { type ChatMessage, encodeChat, type TokenIds, type Tokenizer } from "@llm/models";
import { ApiError, badField, unsupportedField } from "./errors.js";
import type { ChatRequest, WireMessage } from "./requests.js";

/**
 * The conversation of a request → token ids by the model's own template; special tokens in text of users and tools stay text.
 * @throws {ApiError} 400 for messages that the API forbids or the template cannot render
 */
export function encodeChatRequest(tokenizer: Tokenizer, request: ChatRequest): TokenIds {
  const messages = request.messages.map((message, i) => toChatMessage(message, `messages[${i}]`));
  try {
    return encodeChat(tokenizer, messages, {
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
}

function toChatMessage(message: WireMessage, where: string): ChatMessage {
  const { role, name, reasoning_content, tool_calls, tool_call_id } = message;
  const content = plainText(message, where);
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
