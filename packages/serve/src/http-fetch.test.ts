import { expect, test } from "vitest";
import { SimulatedEngine } from "../test/simulated-engine.js";
import { until } from "../test/serve-simulated.js";
import { createFetchHandler } from "./http-fetch.js";

const post = (body: unknown, init: RequestInit = {}) =>
  new Request("http://host/v1/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    ...init,
  });

test("answers requests without a socket", async () => {
  const handle = createFetchHandler(new SimulatedEngine(), { modelName: "m" });
  const plain = await handle(post({ model: "m", prompt: "x" }));
  expect(await plain.json()).toMatchObject({ choices: [{ text: "You said: x" }] });
  const streamed = await handle(post({ model: "m", prompt: "x", stream: true }));
  expect(streamed.headers.get("content-type")).toContain("text/event-stream");
  expect((await streamed.text()).endsWith("data: [DONE]\n\n")).toBe(true);
  expect((await handle(post({ model: "other", prompt: "x" }))).status).toBe(404);
  expect((await handle(new Request("http://host/health"))).status).toBe(200);
});

test("a cancelled body or request aborts the generation", async () => {
  const engine = new SimulatedEngine();
  engine.reply = () => "x".repeat(300);
  engine.beforeStep = () => new Promise((resolve) => setTimeout(resolve, 2));
  const handle = createFetchHandler(engine);
  const response = await handle(post({ model: "default", prompt: "x", max_tokens: 300, stream: true }));
  const reader = response.body!.getReader();
  await reader.read();
  await reader.cancel();
  expect(engine.abortCount).toBe(1);
  const controller = new AbortController();
  const plain = handle(post({ model: "default", prompt: "x", max_tokens: 300 }, { signal: controller.signal }));
  await until(() => engine.stats().running === 1, "it runs");
  controller.abort();
  expect((await plain).status).toBe(499);
  await until(() => engine.stats().running === 0 && engine.stats().kvBlocksUsed === 0, "everything is free");
});

test("the body limit holds with and without a length", async () => {
  const handle = createFetchHandler(new SimulatedEngine(), { bodyLimitBytes: 100 });
  const body = JSON.stringify({ model: "default", prompt: "x".repeat(200) });
  const stream = new ReadableStream({
    start(controller) {
      for (let i = 0; i < body.length; i += 30) controller.enqueue(Buffer.from(body.slice(i, i + 30)));
      controller.close();
    },
  });
  expect((await handle(post({ model: "default", prompt: "x".repeat(200) }))).status).toBe(413);
  expect(
    (
      await handle(
        new Request("http://host/v1/completions", { method: "POST", body: stream, duplex: "half" } as RequestInit),
      )
    ).status,
  ).toBe(413);
  expect(() => createFetchHandler(new SimulatedEngine(), { nope: 1 } as never)).toThrow(/nope/);
});
