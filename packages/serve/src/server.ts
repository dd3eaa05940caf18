import { createServer as createHttpServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { IoError, OptionsError, parseOptions } from "@llm/core";
import { ApiHandler } from "./http-handler.js";
import { answerClientError, handleNodeRequest } from "./http-node.js";
import { namedEngines, serverSchema } from "./http-options.js";
import type { ServerOptions } from "./http-options.js";

/** A listening server. */
export interface Server {
  /** `http://host:port`, with the real port. */
  readonly url: string;
  readonly port: number;
  /**
   * Stops accepting, lets generations in progress finish for up to `timeoutMs`, then aborts them; their clients get an error.
   * The engines are not disposed.
   * @param options.timeoutMs  milliseconds. @default 30000
   */
  close(options?: { timeoutMs?: number }): Promise<void>;
}

/**
 * Serves engines over OpenAI's HTTP API. GET / shows all routes.
 * @throws {OptionsError}
 * @throws {IoError} the address cannot be listened on; `data.code` is the system's (EADDRINUSE …)
 */
export async function createServer(options: ServerOptions): Promise<Server> {
  const { engine, host, port, ...settings } = parseOptions(serverSchema, options, "createServer");
  if (settings.modelName !== undefined && typeof (engine as { stream?: unknown }).stream !== "function") {
    throw new OptionsError("[createServer] modelName names a single engine; several engines are named by their keys");
  }
  const handler = new ApiHandler(namedEngines(engine, settings.modelName), settings);
  /** Open connections and their exchanges in progress. Node does not count one that never sent a request as idle. */
  const exchanges = new Map<Socket, number>();
  const change = (socket: Socket, by: number) => {
    const count = exchanges.get(socket);
    if (count !== undefined) exchanges.set(socket, count + by);
  };
  const server = createHttpServer({ headersTimeout: 20_000, noDelay: true }, (incoming, outgoing) => {
    const { socket } = incoming;
    change(socket, 1);
    outgoing.once("close", () => change(socket, -1));
    void handleNodeRequest(handler, incoming, outgoing, settings.pingIntervalMs);
  });
  server.on("clientError", answerClientError);
  server.on("connection", (socket) => {
    exchanges.set(socket, 0);
    socket.once("close", () => exchanges.delete(socket));
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) =>
      reject(
        new IoError(
          `[createServer] cannot listen on ${host}:${port}: ${error.message}`,
          { host, port, code: error.code },
          error,
        ),
      ),
    );
    server.listen(port, host, resolve);
  });
  const address = server.address() as AddressInfo;
  let closing: Promise<void> | undefined;
  return {
    url: `http://${address.family === "IPv6" ? `[${address.address}]` : address.address}:${address.port}`,
    port: address.port,
    close({ timeoutMs = 30_000 } = {}) {
      closing ??= (async () => {
        const closed = new Promise<void>((resolve) => server.close(() => resolve()));
        await handler.drain(timeoutMs);
        for (const [socket, count] of exchanges) if (count === 0) socket.destroy();
        // What is still open now only has to take its last bytes.
        const timer = setTimeout(() => server.closeAllConnections(), 1000);
        await closed;
        clearTimeout(timer);
      })();
      return closing;
    },
  };
}
