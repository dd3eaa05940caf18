import OpenAI from "openai";
import { afterEach } from "vitest";
import { createServer } from "../src/server.js";
import type { ServerOptions } from "../src/http-options.js";
import type { Server } from "../src/server.js";
import { SimulatedEngine } from "./simulated-engine.js";

const cleanups: (() => Promise<void>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** A server on a free port over a simulated engine, and the official client for it. Closed after the test. */
export async function serveSimulated(
  options: Partial<ServerOptions> = {},
  engineOptions: ConstructorParameters<typeof SimulatedEngine>[0] = {},
): Promise<{ engine: SimulatedEngine; server: Server; openai: OpenAI; errors: unknown[] }> {
  const engine = new SimulatedEngine(engineOptions);
  const errors: unknown[] = [];
  const server = await createServer({
    engine,
    port: 0,
    modelName: "simulated",
    onError: (error) => errors.push(error),
    ...options,
  });
  cleanups.push(async () => {
    await engine.dispose();
    await server.close({ timeoutMs: 0 });
  });
  const openai = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "key", maxRetries: 0 });
  return { engine, server, openai, errors };
}

/** Waits until a condition holds; fails after 5 s. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  throw new Error(`still not so after 5 s: ${what}`);
}

/** A promise and its handles. */
export function gate(): { open: () => void; opened: Promise<void> } {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { open, opened };
}
