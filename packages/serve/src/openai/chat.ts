import { encodeChatRequest } from "./chat-prompt.js";
import { badField } from "./errors.js";
import { UsageTotal, chunkHead, engineRequest, runJob, streamEnd, wireHead } from "./generation.js";
import type { GenerationJob } from "./generation.js";
import { chatTokenLogprob } from "./logprobs.js";
import { parseRequest } from "./parse-request.js";
import { chatFieldRules, chatRequestSchema } from "./requests.js";
import type { ChatRequest } from "./requests.js";
import type { ChatResponse, TokenLogprobEntry } from "./responses.js";
import type { Engine, EngineRequest } from "../engine-types.js";

/** @throws {ApiError} 400 */
export function parseChatRequest(body: Record<string, unknown>): ChatRequest {
  const request = parseRequest(chatRequestSchema, chatFieldRules, body);
  if (request.stream_options !== undefined && !request.stream)
    throw badField("stream_options", "stream_options needs stream: true");
  if (request.top_logprobs !== undefined && !request.logprobs)
    throw badField("top_logprobs", "top_logprobs needs logprobs: true");
  if (
    request.max_tokens !== undefined &&
    request.max_completion_tokens !== undefined &&
    request.max_tokens !== request.max_completion_tokens
  ) {
    throw badField(
      "max_completion_tokens",
      "max_completion_tokens and max_tokens are two names of one limit; give one",
    );
  }
  return request;
}

/** @throws {ApiError} 400 */
export function chatEngineRequests(engine: Engine, request: ChatRequest): EngineRequest[] {
  const promptIds = encodeChatRequest(engine.tokenizer, request);
  if (promptIds.length === 0) throw badField("messages", "the conversation is rendered to an empty prompt");
  return [
    {
      ...engineRequest(engine, promptIds, request, Number.MAX_SAFE_INTEGER, "messages"),
      ...(request.logprobs && { logprobs: request.top_logprobs ?? 0 }),
    },
  ];
}

/** The whole answer as JSON. */
export async function completeChat(job: GenerationJob, signal: AbortSignal): Promise<string> {
  const usage = new UsageTotal();
  const choices: ChatResponse["choices"] = [];
  const logprobs: TokenLogprobEntry[][] = [];
  const wanted = job.requests[0]!.logprobs !== undefined;
  for await (const item of runJob(job, signal)) {
    const { choice, event } = item;
    usage.add(item);
    if (event.type === "text-delta") {
      if (wanted)
        for (const token of event.logprobs ?? [])
          (logprobs[choice] ??= []).push(chatTokenLogprob(job.engine.tokenizer, token));
    } else if (event.type === "finish") {
      choices[choice] = {
        index: choice,
        message: { role: "assistant", content: event.text, refusal: null },
        logprobs: wanted ? { content: logprobs[choice] ?? [], refusal: null } : null,
        finish_reason: event.reason as "stop" | "length",
      };
    }
  }
  const response: ChatResponse = { ...wireHead(job.head, "chat.completion"), choices, usage: usage.toWire() };
  return JSON.stringify(response);
}

/**
 * The answer as server-sent events. Per choice: a delta with the role, deltas with text, one with the finish reason; then, if
 * asked for, the usage; then [DONE].
 */
export async function* streamChat(job: GenerationJob, signal: AbortSignal): AsyncGenerator<string> {
  const usage = new UsageTotal();
  const head = `${chunkHead(job.head, "chat.completion.chunk")}"choices":[{"index":`;
  const tail = `}]${job.includeUsage ? ',"usage":null' : ""}}\n\n`;
  const opened = new Set<number>();
  for await (const item of runJob(job, signal)) {
    const { choice, event } = item;
    if (event.type === "prompt-logprobs") continue;
    usage.add(item);
    let text = "";
    if (!opened.has(choice)) {
      opened.add(choice);
      text = `${head}${choice},"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null${tail}`;
    }
    if (event.type === "finish") {
      text += `${head}${choice},"delta":{},"logprobs":null,"finish_reason":"${event.reason}"${tail}`;
    } else if (event.logprobs !== undefined && event.logprobs.length > 0) {
      const content = JSON.stringify(event.logprobs.map((token) => chatTokenLogprob(job.engine.tokenizer, token)));
      text += `${head}${choice},"delta":{"content":${JSON.stringify(event.text)}},"logprobs":{"content":${content},"refusal":null},"finish_reason":null${tail}`;
    } else if (event.text !== "") {
      text += `${head}${choice},"delta":{"content":${JSON.stringify(event.text)}},"logprobs":null,"finish_reason":null${tail}`;
    }
    if (text !== "") yield text;
  }
  if (job.includeUsage)
    yield `${chunkHead(job.head, "chat.completion.chunk")}"choices":[],"usage":${JSON.stringify(usage.toWire())}}\n\n`;
  yield streamEnd;
}
