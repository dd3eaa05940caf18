import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { bodyTooLarge } from "./http-fetch.js";
import type { ApiHandler } from "./http-handler.js";
import { ApiError } from "./openai/errors.js";

/** Text that waits for a slow reader before the stream is no longer pulled. */
const HIGH_WATER_CHARACTERS = 64 * 1024;
/** How long the rest of a refused body is read and thrown away, so that the client sees the answer. */
const LINGER_MS = 2000;

/** Serves one exchange of node:http. Never rejects. */
export async function handleNodeRequest(
  handler: ApiHandler,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  pingIntervalMs: number,
): Promise<void> {
  const controller = new AbortController();
  outgoing.on("error", () => undefined);
  outgoing.on("close", () => {
    if (!outgoing.writableFinished) controller.abort();
  });
  const path = pathOf(incoming.url ?? "/");
  const { status, headers, body } = await handler.handle({
    method: incoming.method ?? "GET",
    path,
    header: (name) => {
      const value = incoming.headers[name];
      return Array.isArray(value) ? value.join(", ") : value;
    },
    readBody: (limit) => readBody(incoming, limit),
    signal: controller.signal,
  });
  if (outgoing.destroyed) {
    if (typeof body !== "string") await body.return?.();
    return;
  }
  if (!incoming.complete) lingerAndClose(incoming, outgoing);
  if (typeof body === "string") {
    outgoing.writeHead(
      status,
      status === 204 ? headers : { ...headers, "content-length": String(Buffer.byteLength(body)) },
    );
    outgoing.end(incoming.method === "HEAD" ? undefined : body);
    return;
  }
  outgoing.writeHead(status, headers);
  outgoing.flushHeaders();
  await pump(body, outgoing, pingIntervalMs);
}

/** Answers bytes that are not HTTP in the API's error form, and closes the connection. */
export function answerClientError(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const status = error.code === "HPE_HEADER_OVERFLOW" ? 431 : error.code === "ERR_HTTP_REQUEST_TIMEOUT" ? 408 : 400;
  const body = new ApiError(status, `the request is not valid HTTP: ${error.message}`, {
    code: "malformed_request",
  }).toJson();
  const reason = { 400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large" }[status];
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}

/**
 * Writes a stream of events. What arrives within one turn of the event loop, which is what one engine step gives to a
 * connection, goes out as one write. A reader that does not keep up stops the pulling, never the engine.
 */
async function pump(
  body: AsyncIterableIterator<string>,
  outgoing: ServerResponse,
  pingIntervalMs: number,
): Promise<void> {
  let buffer = "";
  let scheduled = false;
  const flush = () => {
    scheduled = false;
    if (buffer === "" || outgoing.destroyed) return;
    ping.refresh();
    const data = buffer;
    buffer = "";
    outgoing.write(data);
  };
  const ping = setInterval(() => {
    if (!outgoing.writableNeedDrain && !outgoing.destroyed) outgoing.write(": ping\n\n");
  }, pingIntervalMs);
  const closed = new AbortController();
  outgoing.once("close", () => closed.abort());
  try {
    for await (const chunk of body) {
      if (outgoing.destroyed) break;
      buffer += chunk;
      if (!scheduled) {
        scheduled = true;
        setImmediate(flush);
      }
      if (buffer.length > HIGH_WATER_CHARACTERS) flush();
      if (outgoing.writableNeedDrain) await once(outgoing, "drain", { signal: closed.signal });
    }
  } catch {
    // Only the wait for "drain" can fail, when the connection closes; leaving the loop has ended the stream.
  } finally {
    clearInterval(ping);
    if (!outgoing.destroyed) outgoing.end(buffer);
  }
}

async function readBody(incoming: IncomingMessage, limit: number): Promise<Uint8Array> {
  if (Number(incoming.headers["content-length"] ?? 0) > limit) throw bodyTooLarge(limit);
  const chunks: Buffer[] = [];
  let size = 0;
  return new Promise((resolve, reject) => {
    incoming.on("data", (chunk: Buffer) => {
      size += chunk.length;
      if (size > limit) {
        incoming.removeAllListeners("data");
        reject(bodyTooLarge(limit));
      } else chunks.push(chunk);
    });
    incoming.on("end", () => resolve(Buffer.concat(chunks)));
    incoming.on("error", (error) =>
      reject(new ApiError(400, `the body ended early: ${error.message}`, { code: "truncated_body" })),
    );
    incoming.on("close", () => reject(new ApiError(400, "the body ended early", { code: "truncated_body" })));
  });
}

/** The request was answered before its body was read: take the rest for a moment, then close. */
function lingerAndClose(incoming: IncomingMessage, outgoing: ServerResponse): void {
  outgoing.setHeader("connection", "close");
  incoming.on("error", () => undefined);
  incoming.resume();
  const timer = setTimeout(() => incoming.destroy(), LINGER_MS);
  timer.unref();
  incoming.once("close", () => clearTimeout(timer));
}

function pathOf(url: string): string {
  const end = url.search(/[?#]/);
  return end < 0 ? url : url.slice(0, end);
}
