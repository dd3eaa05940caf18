import { createServer as createHttpServer } from "node:http";
import type { AddressInfo } from "node:net";
import { LlmError } from "@llm/core";
import { expect, test } from "vitest";
import { serveSimulated, until } from "../test/serve-simulated.js";
import { readServerSentEvents } from "./client-sse.js";
import { createClient } from "./client.js";
import type { ClientEvent } from "./client.js";

async function collect(events: AsyncIterable<ClientEvent>): Promise<{ text: string; last: ClientEvent | undefined }> {
  let text = "";
  let last: ClientEvent | undefined;
  for await (const event of events) {
    if (event.type === "text-delta") text += event.text;
    last = event;
  }
  return { text, last };
}

async function networkError(events: AsyncIterable<unknown>): Promise<LlmError> {
  try {
    for await (const _ of events);
  } catch (error) {
    expect(LlmError.isInstance(error, "NETWORK")).toBe(true);
    return error as LlmError;
  }
  throw new Error("expected a failure");
}

test("chats and completes in a stream, with usage", async () => {
  const { server, engine } = await serveSimulated({ apiKey: "secret" });
  const client = createClient({ baseUrl: `${server.url}/v1/`, apiKey: "secret" });
  expect(await client.models()).toEqual(["simulated"]);
  expect(await client.healthy()).toBe(true);
  const chat = await collect(
    client.chat([{ role: "user", content: "你好" }], { topK: 5, repetitionPenalty: 1.2, seed: 3, stop: ["\n"] }),
  );
  expect(chat).toEqual({
    text: "You said: 你好",
    last: { type: "finish", reason: "stop", usage: { promptTokens: 9, completionTokens: 17, cachedTokens: 0 } },
  });
  expect(engine.requests[0]).toMatchObject({ topK: 5, repetitionPenalty: 1.2, seed: 3, stop: ["\n"] });
  expect((await collect(client.complete("x", { maxTokens: 3 }))).text).toBe("You");
});

test("server errors keep status, code and message", async () => {
  const { server } = await serveSimulated({ apiKey: "secret" });
  const unauthorized = await networkError(
    createClient({ baseUrl: server.url, apiKey: "wrong", model: "simulated" }).complete("x"),
  );
  expect(unauthorized.data).toMatchObject({ status: 401, code: "invalid_api_key" });
  const unknown = await networkError(
    createClient({ baseUrl: server.url, apiKey: "secret", model: "nope" }).complete("x"),
  );
  expect(unknown.message).toContain("nope");
  expect(() => createClient({ baseUrl: "not a url" })).toThrow(/baseUrl/);
});

test("nobody there, a stream cut off and a failing engine are network errors", async () => {
  const { server, engine } = await serveSimulated();
  let steps = 0;
  engine.beforeStep = () => {
    if (++steps === 4) throw new LlmError("NUMERIC", "[rmsNorm] NaN");
  };
  expect((await networkError(createClient({ baseUrl: server.url }).complete("x"))).message).toContain("[rmsNorm] NaN");
  await server.close();
  expect((await networkError(createClient({ baseUrl: server.url, model: "m" }).complete("x"))).message).toContain(
    "cannot reach",
  );
  const cut = createHttpServer((_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end('data: {"choices":[{"index":0,"text":"par"}]}\n\n');
  });
  await new Promise<void>((resolve) => cut.listen(0, "127.0.0.1", resolve));
  const baseUrl = `http://127.0.0.1:${(cut.address() as AddressInfo).port}`;
  expect((await networkError(createClient({ baseUrl, model: "m" }).complete("x"))).message).toContain("in the middle");
  cut.close();
});

test("leaving the loop, or a signal, ends the generation", async () => {
  const { server, engine } = await serveSimulated();
  engine.reply = () => "x".repeat(300);
  engine.beforeStep = () => new Promise((resolve) => setTimeout(resolve, 2));
  const client = createClient({ baseUrl: server.url });
  for await (const event of client.complete("x", { maxTokens: 300 })) if (event.type === "text-delta") break;
  await until(() => engine.abortCount === 1, "the engine saw it");
  const controller = new AbortController();
  const failed = collect(client.complete("x", { maxTokens: 300, signal: controller.signal })).catch(
    (error: Error) => error.name,
  );
  await until(() => engine.stats().running === 1, "it runs");
  controller.abort();
  expect(await failed).toBe("AbortError");
  await until(() => engine.abortCount === 2, "the engine saw it");
});

test("events survive every place where the bytes can be split", async () => {
  const wire = Buffer.from('data: {"a":"é🙂"}\r\n\r\n: ping\n\ndata:x\ndata: y\n\nevent: z\ndata: [DONE]\r\r');
  for (let i = 0; i <= wire.length; i++) {
    for (const j of [i, Math.min(i + 1, wire.length), wire.length]) {
      const payloads: string[] = [];
      async function* parts() {
        yield wire.subarray(0, i);
        yield wire.subarray(i, j);
        yield wire.subarray(j);
        yield Buffer.from("\n");
      }
      for await (const data of readServerSentEvents(parts())) payloads.push(data);
      expect(payloads).toEqual(['{"a":"é🙂"}', "x\ny", "[DONE]"]);
    }
  }
});
