import { setTimeout as sleep } from "node:timers/promises";
import { abortableFetch, LlmError, NetworkError } from "@llm/core";

/** A connection that gives nothing for this long is taken for dead. */
const stallMs = 60_000;
const maxRedirects = 8;

export interface HubClientOptions {
  /** The only origin that sees `credentials`. */
  endpoint: string;
  /** Headers that carry the token. */
  credentials: Record<string, string>;
  retries: number;
  retryDelayMs: number;
  signal: AbortSignal | undefined;
  /** What to tell people about an answer that will not get better by asking again. */
  explain: (status: number, headers: Headers) => string;
}

interface Retryable {
  retryable?: boolean;
  retryAfterMs?: number;
}

/** A URL without its query: signed addresses carry secrets there. */
export function withoutQuery(url: string): string {
  return url.replace(/[?#].*$/s, "");
}

/** Requests to one hub: redirects without the token, retries with growing waits, clear errors. */
export class HubClient {
  private readonly options: HubClientOptions;
  private reached = false;

  constructor(options: HubClientOptions) {
    this.options = options;
  }

  /**
   * GETs a small document, whole; redirects and retries included.
   * @throws {NetworkError} with `data.status` and `data.url`
   */
  get(url: string, headers: Record<string, string> = {}): Promise<{ text: string; headers: Headers }> {
    return this.withRetries(async () => {
      const { response, done, guard } = await this.open(url, headers);
      try {
        return { text: await guard(response.text()), headers: response.headers };
      } catch (error) {
        throw this.broken(url, error);
      } finally {
        done();
      }
    });
  }

  /** Like {@link get}, parsed. @throws {NetworkError} also when the answer is not JSON */
  async getJson(url: string): Promise<unknown> {
    const { text } = await this.get(url, { accept: "application/json" });
    try {
      return JSON.parse(text);
    } catch (cause) {
      throw new NetworkError(
        `[pull] ${withoutQuery(url)} answered with something that is not JSON (a login page or a proxy?)`,
        { url: withoutQuery(url) },
        cause,
      );
    }
  }

  /**
   * Runs an attempt again while it fails in a way that may pass. `progressed()` starts the count anew: a long download
   * over a bad line goes on as long as it gets anywhere.
   */
  async withRetries<T>(attempt: (progressed: () => void) => Promise<T>): Promise<T> {
    const { retries, retryDelayMs, signal } = this.options;
    let failures = 0;
    for (;;) {
      signal?.throwIfAborted();
      try {
        return await attempt(() => {
          failures = 0;
        });
      } catch (error) {
        signal?.throwIfAborted();
        const { retryable, retryAfterMs } = LlmError.isInstance(error) ? (error.data as Retryable) : {};
        if (!retryable || failures >= retries) throw error;
        const wait = Math.min(retryDelayMs * 2 ** failures++, 30_000);
        await sleep(retryAfterMs ?? wait * (0.75 + Math.random() / 2), undefined, { signal });
      }
    }
  }

  /**
   * One GET, redirects followed, no retry. The token goes to the endpoint's own origin only.
   * `guard` ends a promise that waits for the body when nothing comes or the caller gives up; `done` must be called.
   */
  async open(
    url: string,
    headers: Record<string, string> = {},
  ): Promise<{ response: Response; done: () => void; guard: <T>(promise: Promise<T>) => Promise<T> }> {
    const { endpoint, credentials, signal } = this.options;
    const stalled = new AbortController();
    let timer: NodeJS.Timeout | undefined;
    const guard = async <T>(promise: Promise<T>): Promise<T> => {
      timer = setTimeout(() => stalled.abort(new Error(`nothing came for ${stallMs / 1000} s`)), stallMs);
      try {
        return await promise;
      } finally {
        clearTimeout(timer);
      }
    };
    const either = signal === undefined ? stalled.signal : AbortSignal.any([signal, stalled.signal]);
    const done = (): void => stalled.abort(new Error("done"));

    let target = url;
    for (let hop = 0; hop <= maxRedirects; hop++) {
      const own = new URL(target).origin === new URL(endpoint).origin;
      let response: Response;
      try {
        response = await guard(
          abortableFetch(target, {
            headers: { "user-agent": "llm-sdk", ...headers, ...(own ? credentials : {}) },
            redirect: "manual",
            signal: either,
          }),
        );
      } catch (error) {
        signal?.throwIfAborted();
        throw this.broken(target, error);
      }
      this.reached = true;
      const location = response.headers.get("location");
      if (response.status >= 300 && response.status < 400 && location !== null) {
        await response.body?.cancel();
        if (!URL.canParse(location, target) || !/^https?:$/.test(new URL(location, target).protocol)) {
          throw new NetworkError(
            `[pull] ${withoutQuery(target)} redirects to ${withoutQuery(location)}, expected an http(s) URL`,
            { url: withoutQuery(target) },
          );
        }
        target = new URL(location, target).href;
        continue;
      }
      if (response.ok) return { response, done, guard };
      done();
      throw this.refused(target, response);
    }
    throw new NetworkError(`[pull] ${withoutQuery(url)} redirects more than ${maxRedirects} times`, {
      url: withoutQuery(url),
    });
  }

  /** The error for an answer that is not a success. */
  private refused(target: string, { status, headers }: Response): NetworkError {
    const url = withoutQuery(target);
    const retryable = status === 408 || status === 429 || status >= 500;
    const seconds = Number(headers.get("retry-after") ?? Number.NaN);
    const retryAfterMs = Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), 60) * 1000 : undefined;
    const why = retryable
      ? `answered ${status}${status === 429 ? " (too many requests: a token raises the limit)" : ""}`
      : this.options.explain(status, headers);
    return new NetworkError(`[pull] ${url}: ${why}`, { status, url, retryable, retryAfterMs });
  }

  /** The error for a connection that failed before or during the answer. */
  broken(target: string, error: unknown): Error {
    if (LlmError.isInstance(error)) return error;
    const url = withoutQuery(target);
    const causes: string[] = [];
    let codes = "";
    for (let at: unknown = error; at instanceof Error && causes.length < 4; at = at.cause) {
      causes.push(at.message || at.name);
      codes += ` ${(at as NodeJS.ErrnoException).code ?? ""}`;
      if (at instanceof AggregateError)
        codes += at.errors.map((inner: NodeJS.ErrnoException) => ` ${inner.code}`).join("");
    }
    const unreachable = /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ENETUNREACH|EHOSTUNREACH|CERT|SSL/.test(codes);
    return new NetworkError(
      `[pull] cannot read ${url}: ${[...new Set(causes)].join(": ")}${unreachable ? ` (${codes.trim()}; without a network, set offline or HF_HUB_OFFLINE=1 to use what is on disk)` : ""}`,
      { url, retryable: this.reached || !unreachable },
      error,
    );
  }
}
