import { abortableFetch, NetworkError } from "@llm/core";

/** Where and how patiently to ask. */
export interface RequestSettings {
  headers: Record<string, string>;
  /** Further tries after the first. */
  retries: number;
  /** First pause; doubled each time, at most 30 s, unless the server names one (Retry-After). */
  retryDelayMs: number;
  timeoutMs: number;
}

const AGAIN = new Set([408, 425, 429, 500, 502, 503, 504]);

/**
 * Posts JSON and returns the answer once it has status 2xx. Refused connections and the statuses 408, 425, 429, 500, 502,
 * 503 and 504 are tried again.
 * @throws {NetworkError} with `status`, `url` and the server's own message
 * @throws the signal's reason when aborted
 */
export async function postJson(
  url: string,
  body: unknown,
  settings: RequestSettings,
  signal: AbortSignal | undefined,
): Promise<Response> {
  const text = JSON.stringify(body);
  for (let attempt = 0; ; attempt++) {
    signal?.throwIfAborted();
    const limit = AbortSignal.timeout(settings.timeoutMs);
    let failure: NetworkError;
    let pauseMs = Math.min(30_000, settings.retryDelayMs * 2 ** attempt);
    try {
      const response = await abortableFetch(url, {
        method: "POST",
        headers: { "content-type": "application/json", ...settings.headers },
        body: text,
        signal: signal ? AbortSignal.any([signal, limit]) : limit,
      });
      if (response.ok) return response;
      const answer = await response.text();
      failure = new NetworkError(
        `[openaiModel] ${url}: expected status 200, got ${response.status}: ${serverMessage(answer)}`,
        {
          status: response.status,
          url,
          body: answer.slice(0, 2000),
        },
      );
      if (!AGAIN.has(response.status)) throw failure;
      pauseMs = retryAfterMs(response.headers.get("retry-after")) ?? pauseMs;
    } catch (error) {
      signal?.throwIfAborted();
      if (NetworkError.isInstance(error)) throw error;
      const reason = limit.aborted ? `no answer within ${settings.timeoutMs} ms` : causeText(error);
      failure = new NetworkError(`[openaiModel] ${url}: ${reason}`, { url }, error);
    }
    if (attempt >= settings.retries) throw failure;
    await pause(pauseMs, signal);
  }
}

/** The message in an OpenAI error body, or the body itself. */
function serverMessage(body: string): string {
  try {
    const value = JSON.parse(body) as { error?: { message?: unknown } | string; message?: unknown };
    const message = typeof value.error === "object" ? value.error.message : (value.error ?? value.message);
    if (typeof message === "string") return message;
  } catch {
    // Not JSON: shown as it is.
  }
  return body.slice(0, 300) || "no body";
}

/** fetch says only "fetch failed"; why is in its cause. */
export function causeText(error: unknown): string {
  const { message, cause } = error as { message?: string; cause?: { message?: string; code?: string } };
  const detail = cause?.code ?? cause?.message;
  return detail === undefined ? (message ?? String(error)) : `${message} (${detail})`;
}

function retryAfterMs(header: string | null): number | undefined {
  if (header === null) return undefined;
  const seconds = Number(header);
  const ms = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(header) - Date.now();
  return Number.isFinite(ms) ? Math.min(60_000, Math.max(0, ms)) : undefined;
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
