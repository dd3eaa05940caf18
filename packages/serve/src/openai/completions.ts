import type { TokenIds, TokenLogprob } from "@llm/models";
import type { Engine, EngineRequest } from "../engine-types.js";
import { badField } from "./errors.js";
import { UsageTotal, chunkHead, engineRequest, runJob, streamEnd, wireHead } from "./generation.js";
import type { GenerationJob } from "./generation.js";
import { CompletionLogprobsWriter } from "./logprobs.js";
import { parseRequest } from "./parse-request.js";
import { completionFieldRules, completionRequestSchema } from "./requests.js";
import type { CompletionRequest } from "./requests.js";
import type { CompletionResponse } from "./responses.js";

/** OpenAI's default of this endpoint. */
const DEFAULT_MAX_TOKENS = 16;

/** @throws {ApiError} 400 */
export function parseCompletionRequest(body: Record<string, unknown>): CompletionRequest {
  const request = parseRequest(completionRequestSchema, completionFieldRules, body);
  if (request.stream_options !== undefined && !request.stream)
    throw badField("stream_options", "stream_options needs stream: true");
  if (request.max_tokens === 0 && !request.echo)
    throw badField("max_tokens", "max_tokens can be 0 only with echo: true");
  return request;
}

/** A completions job, with the prompts' text when it is to be echoed. */
export interface CompletionJob extends GenerationJob {
  /** Text of each prompt; absent without `echo`. */
  echo: string[] | undefined;
}

/** @throws {ApiError} 400 */
export function completionEngineRequests(
  engine: Engine,
  request: CompletionRequest,
): { requests: EngineRequest[]; echo: string[] | undefined } {
  const { tokenizer } = engine;
  const prompts = promptList(request.prompt);
  const ids = prompts.map((prompt, i): TokenIds => {
    const param = Array.isArray(request.prompt) && typeof request.prompt[0] !== "number" ? `prompt[${i}]` : "prompt";
    const encoded = typeof prompt === "string" ? tokenizer.encode(prompt) : Int32Array.from(prompt);
    if (encoded.length === 0)
      throw badField(param, `${param}: the prompt has no tokens; this model needs at least one`);
    const bad = typeof prompt === "string" ? undefined : prompt.find((id) => id >= tokenizer.vocabSize);
    if (bad !== undefined) throw badField(param, `${param}: token ids are in [0, ${tokenizer.vocabSize}), got ${bad}`);
    return encoded;
  });
  const requests = ids.map((promptIds) => ({
    ...engineRequest(engine, promptIds, request, DEFAULT_MAX_TOKENS, "prompt"),
    ...(request.logprobs !== undefined && { logprobs: request.logprobs }),
    ...(request.logprobs !== undefined && request.echo && { promptLogprobs: request.logprobs }),
  }));
  const echo = request.echo
    ? prompts.map((prompt, i) => (typeof prompt === "string" ? prompt : tokenizer.decode(ids[i]!)))
    : undefined;
  return { requests, echo };
}

function promptList(prompt: CompletionRequest["prompt"]): (string | number[])[] {
  if (typeof prompt === "string") return [prompt];
  if (typeof prompt[0] === "number") return [prompt as number[]];
  return prompt as string[] | number[][];
}

/** Writers of the choices' logprobs, one per choice, because each counts its own characters. */
class ChoiceLogprobs {
  readonly #job: GenerationJob;
  readonly #writers: CompletionLogprobsWriter[] = [];

  constructor(job: GenerationJob) {
    this.#job = job;
  }

  of(choice: number): CompletionLogprobsWriter {
    return (this.#writers[choice] ??= new CompletionLogprobsWriter(this.#job.engine.tokenizer));
  }

  /** The prompt's tokens come first in each of its choices. */
  prompt(prompt: number, logprobs: (TokenLogprob | null)[]): void {
    const ids = this.#job.requests[prompt]!.prompt as TokenIds;
    for (let i = 0; i < this.#job.n; i++) {
      const writer = this.of(prompt * this.#job.n + i);
      logprobs.forEach((token, t) => writer.push(ids[t]!, token));
    }
  }
}

/** The whole answer as JSON. */
export async function completeText(job: CompletionJob, signal: AbortSignal): Promise<string> {
  const usage = new UsageTotal();
  const logprobs = new ChoiceLogprobs(job);
  const wanted = job.requests[0]!.logprobs !== undefined;
  const choices: CompletionResponse["choices"] = [];
  for await (const item of runJob(job, signal)) {
    const { prompt, choice, event } = item;
    usage.add(item);
    if (event.type === "prompt-logprobs") logprobs.prompt(prompt, event.logprobs);
    else if (event.type === "text-delta")
      for (const token of event.logprobs ?? []) logprobs.of(choice).push(token.id, token);
    else {
      choices[choice] = {
        index: choice,
        text: (job.echo?.[prompt] ?? "") + event.text,
        logprobs: wanted ? logprobs.of(choice).take() : null,
        finish_reason: event.reason as "stop" | "length",
      };
    }
  }
  const response: CompletionResponse = { ...wireHead(job.head, "text_completion"), choices, usage: usage.toWire() };
  return JSON.stringify(response);
}

/** The answer as server-sent events; with `echo`, a choice's first text is its prompt. */
export async function* streamText(job: CompletionJob, signal: AbortSignal): AsyncGenerator<string> {
  const usage = new UsageTotal();
  const logprobs = new ChoiceLogprobs(job);
  const wanted = job.requests[0]!.logprobs !== undefined;
  const head = `${chunkHead(job.head, "text_completion")}"choices":[{"index":`;
  const tail = `}]${job.includeUsage ? ',"usage":null' : ""}}\n\n`;
  const echoed = new Set<number>();
  for await (const item of runJob(job, signal)) {
    const { prompt, choice, event } = item;
    usage.add(item);
    if (event.type === "prompt-logprobs") {
      logprobs.prompt(prompt, event.logprobs);
      continue;
    }
    let chunk = "";
    const write = (text: string, finish: string) => {
      const tokens = wanted ? logprobs.of(choice).take() : undefined;
      if (text === "" && finish === "null" && !(tokens !== undefined && tokens.tokens.length > 0)) return;
      chunk += `${head}${choice},"text":${JSON.stringify(text)},"logprobs":${tokens === undefined ? "null" : JSON.stringify(tokens)},"finish_reason":${finish}${tail}`;
    };
    if (job.echo !== undefined && !echoed.has(choice)) {
      echoed.add(choice);
      write(job.echo[prompt]!, "null");
    }
    if (event.type === "text-delta") {
      for (const token of event.logprobs ?? []) logprobs.of(choice).push(token.id, token);
      write(event.text, "null");
    } else write("", `"${event.reason}"`);
    if (chunk !== "") yield chunk;
  }
  if (job.includeUsage)
    yield `${chunkHead(job.head, "text_completion")}"choices":[],"usage":${JSON.stringify(usage.toWire())}}\n\n`;
  yield streamEnd;
}
