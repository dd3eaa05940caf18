import { parseOptions } from "@llm/core";
import type { Engine } from "./engine-types.js";
import { ApiHandler } from "./http-handler.js";
import { fetchHandlerSchema, namedEngines } from "./http-options.js";
import type { FetchHandlerOptions } from "./http-options.js";
import { ApiError } from "./openai/errors.js";

/**
 * The server as a function from Request to Response, for hosts that bring their own HTTP (or for tests).
 * Cancelling the response's body, or the request's signal, aborts the generation.
 * @param engine  one engine, or several by model name
 * @throws {OptionsError}
 */
export function createFetchHandler(
  engine: Engine | Record<string, Engine>,
  options: FetchHandlerOptions = {},
): (request: Request) => Promise<Response> {
  const settings = parseOptions(fetchHandlerSchema, options, "createFetchHandler");
  const handler = new ApiHandler(namedEngines(engine, settings.modelName), settings);
  return async (request) => {
    const response = await handler.handle({
      method: request.method,
      path: new URL(request.url).pathname,
      header: (name) => request.headers.get(name) ?? undefined,
      readBody: (limit) => readBody(request, limit),
      signal: request.signal,
    });
    const { status, headers, body } = response;
    if (typeof body === "string")
      return new Response(status === 204 || request.method === "HEAD" ? null : body, { status, headers });
    const encoder = new TextEncoder();
    const stream = new ReadableStream<Uint8Array>({
      async pull(controller) {
        const { done, value } = await body.next();
        if (done === true) controller.close();
        else controller.enqueue(encoder.encode(value));
      },
      async cancel() {
        await body.return?.();
      },
    });
    return new Response(stream, { status, headers });
  };
}

async function readBody(request: Request, limit: number): Promise<Uint8Array> {
  if (Number(request.headers.get("content-length") ?? 0) > limit) throw bodyTooLarge(limit);
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = request.body?.getReader();
  while (reader !== undefined) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > limit) {
      await reader.cancel();
      throw bodyTooLarge(limit);
    }
    chunks.push(value);
  }
  return Buffer.concat(chunks);
}

export function bodyTooLarge(limit: number): ApiError {
  return new ApiError(413, `the body is larger than ${limit} bytes`, { code: "body_too_large" });
}
