import { LlmError } from "@llm/core";

/** A failure as OpenAI's clients expect it on the wire. Stays inside the HTTP layer. */
export class ApiError extends Error {
  readonly status: number;
  readonly type: string;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Record<string, string>;

  constructor(
    status: number,
    message: string,
    details: { type?: string; param?: string; code?: string; headers?: Record<string, string>; cause?: unknown } = {},
  ) {
    super(message, { cause: details.cause });
    this.name = "ApiError";
    this.status = status;
    this.type = details.type ?? (status >= 500 ? "server_error" : "invalid_request_error");
    this.param = details.param ?? null;
    this.code = details.code ?? null;
    this.headers = details.headers ?? {};
  }

  /** `{"error":{message,type,param,code}}` */
  toJson(): string {
    const { message, type, param, code } = this;
    return JSON.stringify({ error: { message, type, param, code } });
  }
}

/** A field that is wrong: 400 that names it. */
export function badField(param: string, message: string, code = "invalid_value"): ApiError {
  return new ApiError(400, message, { param, code });
}

/** A field that is right and that this server cannot honour: 400 that names it, instead of ignoring it. */
export function unsupportedField(param: string, message: string): ApiError {
  return new ApiError(400, message, { param, code: "unsupported_parameter" });
}

export function contextLengthExceeded(
  maxTokens: number,
  promptTokens: number,
  outputTokens: number,
  param: string,
): ApiError {
  return new ApiError(
    400,
    `this model holds at most ${maxTokens} tokens of prompt and output, but ${promptTokens + outputTokens} were requested ` +
      `(${promptTokens} in the prompt, ${outputTokens} to generate); shorten the prompt or the output`,
    { param, code: "context_length_exceeded" },
  );
}

/**
 * What a failure means to a client. Errors of this SDK say what was wrong; anything unknown is a 500 without details (the
 * server's `onError` has them).
 */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (LlmError.isInstance(error)) {
    const { message } = error;
    switch (error.code) {
      case "OPTIONS":
      case "NUMERIC":
        return new ApiError(400, message, {
          code: error.data.reason === "context_length_exceeded" ? "context_length_exceeded" : "invalid_value",
          cause: error,
        });
      case "UNSUPPORTED":
        return new ApiError(400, message, { code: "unsupported", cause: error });
      case "QUEUE_FULL":
        return queueFull(message, error);
      case "ENGINE_DEAD":
      case "DISPOSED":
        return new ApiError(503, message, { code: "engine_dead", cause: error });
      case "OUT_OF_MEMORY":
        return new ApiError(503, message, { code: "out_of_memory", cause: error });
      default:
        return new ApiError(500, message, { code: error.code.toLowerCase(), cause: error });
    }
  }
  return new ApiError(500, "internal error", { code: "internal", cause: error });
}

/** 429 with Retry-After: the client's library tries again by itself. */
export function queueFull(message: string, cause?: unknown): ApiError {
  return new ApiError(429, message, {
    type: "rate_limit_error",
    code: "queue_full",
    headers: { "retry-after": "1" },
    cause,
  });
}
