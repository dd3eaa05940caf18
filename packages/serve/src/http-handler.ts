import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import type { Engine } from "./engine-types.js";
import type { HandlerSettings } from "./http-options.js";
import type { ApiRequest, ApiResponse } from "./http-types.js";
import { version } from "./http-version.js";
import { ServerMetrics } from "./metrics.js";
import { chatEngineRequests, completeChat, parseChatRequest, streamChat } from "./openai/chat.js";
import { completeText, completionEngineRequests, parseCompletionRequest, streamText } from "./openai/completions.js";
import { ApiError, queueFull, toApiError } from "./openai/errors.js";
import type { GenerationJob } from "./openai/generation.js";
import { openApiDocument } from "./openai/openapi.js";
import { parseJsonObject } from "./openai/parse-request.js";
import type { ChatRequest, CompletionRequest } from "./openai/requests.js";
import type { ModelEntry } from "./openai/responses.js";
import { apiPage } from "./page.js";

type Handler = (request: ApiRequest, parameter: string) => ApiResponse | Promise<ApiResponse>;

interface Route {
  method: "GET" | "POST";
  /** Exact path, or a prefix that a parameter follows when it ends with "/". */
  path: string;
  /** Label in metrics. */
  name: string;
  handler: Handler;
}

/** The OpenAI API over engines, without a transport. One instance per server. */
export class ApiHandler {
  readonly metrics: ServerMetrics;
  readonly #engines: ReadonlyMap<string, Engine>;
  readonly #settings: HandlerSettings;
  readonly #keys: Buffer[];
  readonly #created = Math.floor(Date.now() / 1000);
  readonly #routes: Route[];
  /** One controller per generation request in progress. */
  readonly #active = new Set<AbortController>();
  #draining = false;
  #idle: (() => void) | undefined;

  constructor(engines: ReadonlyMap<string, Engine>, settings: HandlerSettings) {
    this.#engines = engines;
    this.#settings = settings;
    this.#keys = [settings.apiKey ?? []].flat().map(digest);
    this.metrics = new ServerMetrics(engines);
    const get = (path: string, handler: Handler): Route => ({
      method: "GET",
      path,
      name: path.endsWith("/") && path !== "/" ? `${path}{id}` : path,
      handler,
    });
    const post = (path: string, handler: Handler): Route => ({ method: "POST", path, name: path, handler });
    this.#routes = [
      get("/", () =>
        text(200, "text/html; charset=utf-8", apiPage(), {
          "content-security-policy":
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'",
        }),
      ),
      get("/health", () => this.#health()),
      get("/metrics", () => text(200, "text/plain; version=0.0.4; charset=utf-8", this.metrics.render())),
      get("/version", () => json(200, { version })),
      get("/openapi.json", () => json(200, openApiDocument(version, this.#keys.length > 0))),
      get("/v1/models", () =>
        json(200, { object: "list", data: [...this.#engines.keys()].map((name) => this.#modelEntry(name)) }),
      ),
      get("/v1/models/", (_, name) => json(200, this.#modelEntry(this.#modelName(name)))),
      post("/v1/chat/completions", (request) => this.#chat(request)),
      post("/v1/completions", (request) => this.#completions(request)),
    ];
  }

  /** Generation requests in progress. */
  get activeCount(): number {
    return this.#active.size;
  }

  /** Answers a request; never rejects. */
  async handle(request: ApiRequest): Promise<ApiResponse> {
    const requestId = requestIdOf(request.header("x-request-id"));
    let route: Route | undefined;
    let response: ApiResponse;
    try {
      if (request.method === "OPTIONS" && this.#settings.corsOrigin !== undefined) {
        response = text(204, "", "");
      } else {
        const found = this.#find(request);
        route = found.route;
        response = await found.route.handler(request, found.parameter);
      }
    } catch (error) {
      response = this.#failure(error, requestId, route?.name ?? "");
    }
    this.metrics.response(route?.name ?? "unmatched", request.method, response.status);
    response.headers["x-request-id"] = requestId;
    if (this.#draining) response.headers.connection = "close";
    if (this.#settings.corsOrigin !== undefined) {
      response.headers["access-control-allow-origin"] = this.#settings.corsOrigin;
      response.headers["access-control-allow-methods"] = "GET, POST, OPTIONS";
      response.headers["access-control-allow-headers"] =
        request.header("access-control-request-headers") ?? "authorization, content-type";
      response.headers["access-control-expose-headers"] = "x-request-id, retry-after";
      response.headers.vary = "origin, access-control-request-headers";
    }
    if (typeof response.body !== "string") response.body = this.#eventErrors(response.body, requestId, route!.name);
    return response;
  }

  /**
   * Refuses new generations with 503, waits for those in progress and aborts what is left after `timeoutMs`.
   * Ends when none is in progress.
   */
  async drain(timeoutMs: number): Promise<void> {
    this.#draining = true;
    if (this.#active.size === 0) return;
    const idle = new Promise<void>((resolve) => (this.#idle = resolve));
    const timer = setTimeout(
      () => this.abortAll(new ApiError(503, "the server is shutting down", { code: "shutting_down" })),
      timeoutMs,
    );
    await idle;
    clearTimeout(timer);
  }

  /** Aborts every generation in progress. */
  abortAll(reason: ApiError): void {
    for (const controller of this.#active) controller.abort(reason);
  }

  #find(request: ApiRequest): { route: Route; parameter: string } {
    const path = request.path.length > 1 && request.path.endsWith("/") ? request.path.slice(0, -1) : request.path;
    if (path === "/v1" || path.startsWith("/v1/")) this.#authorize(request);
    const method = request.method === "HEAD" ? "GET" : request.method;
    const allowed: string[] = [];
    for (const route of this.#routes) {
      const prefix = route.path.length > 1 && route.path.endsWith("/");
      if (prefix ? !(path.startsWith(route.path) && path.length > route.path.length) : path !== route.path) continue;
      if (route.method === method)
        return { route, parameter: prefix ? decodeParameter(path.slice(route.path.length)) : "" };
      allowed.push(route.method);
    }
    if (allowed.length > 0)
      throw new ApiError(405, `${request.path} takes ${allowed.join(", ")}, not ${request.method}`, {
        code: "method_not_allowed",
        headers: { allow: allowed.join(", ") },
      });
    throw new ApiError(404, `there is no route ${request.path}; GET / shows all`, { code: "not_found" });
  }

  #authorize(request: ApiRequest): void {
    if (this.#keys.length === 0) return;
    const header = request.header("authorization") ?? "";
    const given = digest(/^bearer\s+/i.test(header) ? header.replace(/^bearer\s+/i, "").trim() : "");
    // Every key is compared, and digests have one length, so the time tells nothing.
    let valid = false;
    for (const key of this.#keys) if (timingSafeEqual(key, given)) valid = true;
    if (valid) return;
    throw new ApiError(401, header === "" ? "an API key is needed: Authorization: Bearer …" : "the API key is wrong", {
      code: "invalid_api_key",
      headers: { "www-authenticate": "Bearer" },
    });
  }

  #health(): ApiResponse {
    for (const [model, engine] of this.#engines) {
      const health = engine.health();
      if (health.status === "dead")
        return json(503, { status: "dead", model, error: health.error ?? "the engine has stopped" });
    }
    return this.#draining ? json(503, { status: "draining" }) : json(200, { status: "ok" });
  }

  #modelEntry(id: string): ModelEntry {
    return {
      id,
      object: "model",
      created: this.#created,
      owned_by: "llm",
      max_model_len: this.#engines.get(id)!.maxTokens,
    };
  }

  #modelName(name: string): string {
    if (this.#engines.has(name)) return name;
    throw new ApiError(404, `the model '${name}' does not exist; served: ${[...this.#engines.keys()].join(", ")}`, {
      param: "model",
      code: "model_not_found",
    });
  }

  async #body(request: ApiRequest): Promise<Record<string, unknown>> {
    const type = request.header("content-type");
    if (type !== undefined && !/^application\/json\s*(;|$)/i.test(type)) {
      throw new ApiError(415, `the body must be application/json, got ${type}`, { code: "unsupported_media_type" });
    }
    return parseJsonObject(await request.readBody(this.#settings.bodyLimitBytes));
  }

  async #chat(request: ApiRequest): Promise<ApiResponse> {
    const body: ChatRequest = parseChatRequest(await this.#body(request));
    return this.#generate(
      request,
      body,
      "chatcmpl-",
      (engine) => ({ requests: chatEngineRequests(engine, body) }),
      completeChat,
      streamChat,
    );
  }

  async #completions(request: ApiRequest): Promise<ApiResponse> {
    const body: CompletionRequest = parseCompletionRequest(await this.#body(request));
    return this.#generate(
      request,
      body,
      "cmpl-",
      (engine) => completionEngineRequests(engine, body),
      completeText,
      streamText,
    );
  }

  /** What both endpoints share: admission, the answer's head, and the life of the abort controller. */
  async #generate<TExtra extends Pick<GenerationJob, "requests">>(
    request: ApiRequest,
    body: ChatRequest | CompletionRequest,
    idPrefix: string,
    prepare: (engine: Engine) => TExtra,
    complete: (job: GenerationJob & TExtra, signal: AbortSignal) => Promise<string>,
    stream: (job: GenerationJob & TExtra, signal: AbortSignal) => AsyncGenerator<string>,
  ): Promise<ApiResponse> {
    const model = this.#modelName(body.model);
    const engine = this.#engines.get(model)!;
    if (this.#draining)
      throw new ApiError(503, "the server is shutting down", {
        code: "shutting_down",
        headers: { "retry-after": "1" },
      });
    const health = engine.health();
    if (health.status === "dead")
      throw new ApiError(503, `the engine has stopped: ${health.error ?? "unknown reason"}`, { code: "engine_dead" });
    if (this.#active.size >= this.#settings.maxQueue)
      throw queueFull(`the server works on ${this.#active.size} requests already; try again`);
    const job: GenerationJob & TExtra = {
      ...prepare(engine),
      engine,
      n: body.n,
      stream: body.stream,
      includeUsage: body.stream_options?.include_usage === true,
      observer: this.metrics.observe(model),
      head: {
        id: idPrefix + randomBytes(15).toString("base64url"),
        created: Math.floor(Date.now() / 1000),
        model,
        systemFingerprint: `fp_${digest(`${version}/${model}`).toString("hex").slice(0, 10)}`,
      },
    };
    const controller = new AbortController();
    const onClose = () => controller.abort(request.signal.reason);
    if (request.signal.aborted) onClose();
    request.signal.addEventListener("abort", onClose, { once: true });
    const finish = () => {
      if (!this.#active.delete(controller)) return;
      request.signal.removeEventListener("abort", onClose);
      this.metrics.activeRequests = this.#active.size;
      if (this.#active.size === 0) this.#idle?.();
    };
    this.#active.add(controller);
    this.metrics.activeRequests = this.#active.size;
    if (!body.stream) {
      try {
        return jsonText(200, await complete(job, controller.signal));
      } finally {
        finish();
      }
    }
    const iterator = stream(job, controller.signal);
    const first = iterator.next();
    // A refusal comes before the first event and becomes a status; a slow prompt must not hold the headers back for ever.
    try {
      await Promise.race([first, timeout(this.#settings.pingIntervalMs)]);
    } catch (error) {
      finish();
      throw error;
    }
    return {
      status: 200,
      headers: {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
      },
      body: events(first, iterator, controller, finish),
    };
  }

  #failure(error: unknown, requestId: string, route: string): ApiResponse {
    const failure = toApiError(error);
    if (failure.status >= 500) this.#report(failure, requestId, route);
    return {
      status: failure.status,
      headers: { "content-type": "application/json; charset=utf-8", ...failure.headers },
      body: failure.toJson(),
    };
  }

  #report(failure: ApiError, requestId: string, route: string): void {
    const { onError } = this.#settings;
    const cause = failure.cause ?? failure;
    if (onError !== undefined) onError(cause, { requestId, route });
    else
      process.stderr.write(
        `[serve] ${route} ${requestId}: ${failure.message}${cause === failure ? "" : ` (${String(cause)})`}\n`,
      );
  }

  /** Turns a failure in the middle of a stream into an event that OpenAI's clients throw as an error, and ends the stream. */
  #eventErrors(body: AsyncIterableIterator<string>, requestId: string, route: string): AsyncIterableIterator<string> {
    return {
      [Symbol.asyncIterator]() {
        return this;
      },
      next: async () => {
        try {
          return await body.next();
        } catch (error) {
          const failure = toApiError(error);
          if (failure.status >= 500) this.#report(failure, requestId, route);
          return { done: false, value: `data: ${failure.toJson()}\n\n` };
        }
      },
      return: async () => {
        await body.return?.();
        return { done: true, value: undefined };
      },
    };
  }
}

/** The rest of a stream whose first item was asked for already. Leaving it early aborts the work behind it. */
function events(
  first: Promise<IteratorResult<string>>,
  iterator: AsyncGenerator<string>,
  controller: AbortController,
  finish: () => void,
): AsyncIterableIterator<string> {
  let pending: Promise<IteratorResult<string>> | undefined = first;
  return {
    [Symbol.asyncIterator]() {
      return this;
    },
    async next() {
      const item = pending ?? iterator.next();
      pending = undefined;
      try {
        const result = await item;
        if (result.done === true) finish();
        return result;
      } catch (error) {
        finish();
        throw error;
      }
    },
    async return() {
      controller.abort(new ApiError(499, "the client closed the connection", { code: "client_closed" }));
      first.catch(() => undefined);
      await iterator.return(undefined).catch(() => undefined);
      finish();
      return { done: true, value: undefined };
    },
  };
}

function timeout(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref());
}

function digest(value: string): Buffer {
  return createHash("sha256").update(value).digest();
}

/** The client's own id when it is harmless, else a new one. */
function requestIdOf(given: string | undefined): string {
  return given !== undefined && /^[\w.:-]{1,128}$/.test(given) ? given : `req_${randomBytes(12).toString("base64url")}`;
}

function decodeParameter(value: string): string {
  try {
    return decodeURIComponent(value);
  } catch {
    throw new ApiError(400, `the path has a malformed escape: ${value}`, { code: "invalid_path" });
  }
}

function text(status: number, type: string, body: string, headers: Record<string, string> = {}): ApiResponse {
  return { status, headers: type === "" ? headers : { "content-type": type, ...headers }, body };
}

function jsonText(status: number, body: string): ApiResponse {
  return text(status, "application/json; charset=utf-8", body);
}

function json(status: number, value: unknown): ApiResponse {
  return jsonText(status, JSON.stringify(value));
}
