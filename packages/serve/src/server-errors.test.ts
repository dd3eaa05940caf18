import { createConnection } from "node:net";
import { LlmError } from "@llm/core";
import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { gate, serveSimulated, until } from "../test/serve-simulated.js";
import { createServer } from "./server.js";

const hello = { model: "simulated", messages: [{ role: "user" as const, content: "hi" }] };

async function errorOf(promise: PromiseLike<unknown>): Promise<InstanceType<typeof OpenAI.APIError>> {
  try {
    await promise;
  } catch (error) {
    return error as InstanceType<typeof OpenAI.APIError>;
  }
  throw new Error("expected a failure, got an answer");
}

/** Sends bytes as they are and reads until the server closes. */
function raw(port: number, bytes: string | Uint8Array, options: { end?: boolean } = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ port, host: "127.0.0.1" });
    const chunks: Buffer[] = [];
    socket.on("data", (chunk) => chunks.push(chunk));
    socket.on("close", () => resolve(Buffer.concat(chunks).toString()));
    socket.on("error", reject);
    socket.write(bytes);
    if (options.end === true) socket.end();
  });
}

function post(path: string, body: string | Uint8Array, headers = "content-type: application/json\r\n"): Buffer {
  const bytes = Buffer.from(body);
  return Buffer.concat([
    Buffer.from(
      `POST ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n${headers}content-length: ${bytes.length}\r\n\r\n`,
    ),
    bytes,
  ]);
}

describe("wrong requests become typed errors of the official client", () => {
  test.each<[Record<string, unknown>, string, string]>([
    [{ temperature: 2.1 }, "temperature", "invalid_value"],
    [{ temperature: "hot" }, "temperature", "invalid_type"],
    [{ top_p: 0 }, "top_p", "invalid_value"],
    [{ n: 0 }, "n", "invalid_value"],
    [{ n: 1.5 }, "n", "invalid_value"],
    [{ max_tokens: 0 }, "max_tokens", "invalid_value"],
    [{ max_tokens: 5, max_completion_tokens: 6 }, "max_completion_tokens", "invalid_value"],
    [{ stop: ["1", "2", "3", "4", "5"] }, "stop", "invalid_value"],
    [{ stop: ["a", 5] }, "stop[1]", "invalid_type"],
    [{ stop: "" }, "stop", "invalid_value"],
    [{ seed: "x" }, "seed", "invalid_type"],
    [{ logprobs: 3 }, "logprobs", "invalid_type"],
    [{ top_logprobs: 3 }, "top_logprobs", "invalid_value"],
    [{ logprobs: true, top_logprobs: 21 }, "top_logprobs", "invalid_value"],
    [{ stream_options: { include_usage: true } }, "stream_options", "invalid_value"],
    [{ stream: true, stream_options: { usage: true } }, "stream_options.usage", "unknown_parameter"],
    [{ temprature: 1 }, "temprature", "unknown_parameter"],
    [{ constructor: 1 }, "constructor", "unknown_parameter"],
    [{ logit_bias: { "5": 3 } }, "logit_bias", "unsupported_parameter"],
    [{ response_format: { type: "json_schema", json_schema: {} } }, "response_format", "unsupported_parameter"],
    [{ tool_choice: "required" }, "tool_choice", "unsupported_parameter"],
    [{ tool_choice: { type: "function", function: { name: "f" } } }, "tool_choice", "unsupported_parameter"],
    [{ parallel_tool_calls: false }, "parallel_tool_calls", "unsupported_parameter"],
    [{ audio: { voice: "x", format: "wav" } }, "audio", "unsupported_parameter"],
    [{ modalities: ["text", "audio"] }, "modalities", "unsupported_parameter"],
    [{ functions: [] }, "functions", "unsupported_parameter"],
    [{ messages: [] }, "messages", "invalid_value"],
    [{ messages: "hi" }, "messages", "invalid_type"],
    [{ messages: undefined }, "messages", "missing_required_parameter"],
    [{ messages: [{ role: "wizard", content: "x" }] }, "messages[0].role", "invalid_type"],
    [{ messages: [{ role: "user" }] }, "messages[0].content", "missing_required_parameter"],
    [{ messages: [{ role: "user", content: 5 }] }, "messages[0].content", "invalid_type"],
    [{ messages: [{ role: "user", content: "x", colour: "red" }] }, "messages[0].colour", "unknown_parameter"],
    [{ messages: [{ role: "tool", content: "x" }] }, "messages[0].tool_call_id", "missing_required_parameter"],
    [
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] }] },
      "messages[0].content[0].type",
      "unsupported_parameter",
    ],
    [{ messages: [{ role: "user", content: "bad \ud800 half" }] }, "messages[0].content", "invalid_utf8"],
  ])("%j is a 400 that names %s", async (change, param, code) => {
    const { openai, engine } = await serveSimulated();
    const error = await errorOf(openai.chat.completions.create({ ...hello, ...change } as never));
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect([error.param, error.code, error.type]).toEqual([param, code, "invalid_request_error"]);
    expect(error.message.length).toBeGreaterThan(10);
    expect(engine.requests).toHaveLength(0);
  });

  test.each<[Record<string, unknown>, string, string]>([
    [{ suffix: "end" }, "suffix", "unsupported_parameter"],
    [{ best_of: 3 }, "best_of", "unsupported_parameter"],
    [{ prompt: [] }, "prompt", "invalid_value"],
    [{ prompt: ["a", 5] }, "prompt[1]", "invalid_type"],
    [{ prompt: [[1], []] }, "prompt[1]", "invalid_value"],
    [{ prompt: [5, -1] }, "prompt[1]", "invalid_value"],
    [{ prompt: [5, 100000] }, "prompt", "invalid_value"],
    [{ max_tokens: 0 }, "max_tokens", "invalid_value"],
    [{ logprobs: true }, "logprobs", "invalid_type"],
    [{ messages: [] }, "messages", "unknown_parameter"],
  ])("completions: %j is a 400 that names %s", async (change, param, code) => {
    const { openai } = await serveSimulated();
    const error = await errorOf(openai.completions.create({ model: "simulated", prompt: "x", ...change } as never));
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect([error.param, error.code]).toEqual([param, code]);
  });

  test("null means absent", async () => {
    const { openai } = await serveSimulated();
    const completion = await openai.chat.completions.create({
      ...hello,
      temperature: null,
      stop: null,
      logit_bias: null,
      seed: null,
      max_tokens: null,
      stream_options: null,
    });
    expect(completion.choices[0]!.message.content).toBe("You said: hi");
  });

  test("a prompt longer than the model, or with too long an output, is context_length_exceeded", async () => {
    const { openai } = await serveSimulated();
    for (const request of [
      openai.chat.completions.create({ model: "simulated", messages: [{ role: "user", content: "x".repeat(600) }] }),
      openai.chat.completions.create({ ...hello, max_tokens: 600 }),
      openai.completions.create({ model: "simulated", prompt: "x".repeat(600) }),
    ]) {
      const error = await errorOf(request);
      expect(error).toBeInstanceOf(OpenAI.BadRequestError);
      expect(error.code).toBe("context_length_exceeded");
      expect(error.message).toContain("512");
    }
  });

  test("an unknown model is a 404, a wrong key a 401, a wrong method a 405 with Allow", async () => {
    const { openai, server } = await serveSimulated({ apiKey: ["first", "key"] });
    const error = await errorOf(openai.chat.completions.create({ ...hello, model: "gpt-4" }));
    expect(error).toBeInstanceOf(OpenAI.NotFoundError);
    expect(error.code).toBe("model_not_found");
    expect(await errorOf(openai.models.retrieve("gpt-4"))).toBeInstanceOf(OpenAI.NotFoundError);
    for (const apiKey of ["wrong", "keyy", "ke"]) {
      const refused = await errorOf(new OpenAI({ baseURL: `${server.url}/v1`, apiKey, maxRetries: 0 }).models.list());
      expect(refused).toBeInstanceOf(OpenAI.AuthenticationError);
      expect(refused.code).toBe("invalid_api_key");
    }
    expect((await openai.models.list()).data).toHaveLength(1);
    const method = await fetch(`${server.url}/v1/chat/completions`, { headers: { authorization: "Bearer key" } });
    expect([method.status, method.headers.get("allow")]).toEqual([405, "POST"]);
    expect(
      (await fetch(`${server.url}/v1/embeddings`, { method: "POST", headers: { authorization: "Bearer key" } })).status,
    ).toBe(404);
    expect((await fetch(`${server.url}/v1/models`)).headers.get("www-authenticate")).toBe("Bearer");
    for (const open of ["/health", "/metrics", "/version", "/"])
      expect((await fetch(server.url + open)).status).toBe(200);
  });

  test("a model without a chat template says so", async () => {
    const { openai } = await serveSimulated({}, { chatTemplate: false });
    expect((await errorOf(openai.chat.completions.create(hello))).code).toBe("no_chat_template");
  });
});

describe("load and failure", () => {
  test("a full server answers 429 with Retry-After, and serves again afterwards", async () => {
    const { openai, engine, server } = await serveSimulated({ maxQueue: 2 });
    const { open, opened } = gate();
    engine.beforeStep = () => opened;
    const first = [openai.chat.completions.create(hello), openai.chat.completions.create(hello)].map(
      async (request) => (await request).choices[0]!.message.content,
    );
    await until(() => engine.requests.length === 2, "two requests came in");
    const error = await errorOf(openai.chat.completions.create(hello));
    expect(error).toBeInstanceOf(OpenAI.RateLimitError);
    expect(error.code).toBe("queue_full");
    expect(error.headers!.get("retry-after")).toBe("1");
    open();
    expect(await Promise.all(first)).toEqual(["You said: hi", "You said: hi"]);
    const retrying = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "key" });
    expect((await retrying.chat.completions.create(hello)).choices).toHaveLength(1);
  });

  test("the engine's own full queue is a 429 too, streamed or not", async () => {
    const { openai, engine } = await serveSimulated({}, { maxQueue: 3 });
    expect(await errorOf(openai.chat.completions.create({ ...hello, n: 4 }))).toBeInstanceOf(OpenAI.RateLimitError);
    expect(await errorOf(openai.chat.completions.create({ ...hello, n: 4, stream: true }))).toBeInstanceOf(
      OpenAI.RateLimitError,
    );
    const prompts = await errorOf(
      openai.completions.create({ model: "simulated", prompt: ["a", "b", "c", "d", "e", "f"] }),
    );
    expect(prompts).toBeInstanceOf(OpenAI.RateLimitError);
    await until(() => engine.stats().kvBlocksUsed === 0 && engine.stats().waiting === 0, "the others were aborted");
  });

  test("150 requests at once against a small queue: some are refused, all are answered, the server lives on", async () => {
    const { openai, engine } = await serveSimulated({ maxQueue: 40 }, { maxBatchSize: 4 });
    const results = await Promise.all(
      Array.from({ length: 150 }, () =>
        openai.chat.completions.create(hello).then(
          ({ choices }) => choices[0]!.message.content,
          (error: unknown) => error,
        ),
      ),
    );
    const refused = results.filter((result) => result instanceof OpenAI.RateLimitError).length;
    expect(results.filter((result) => result === "You said: hi").length).toBe(150 - refused);
    expect(refused).toBeGreaterThan(0);
    expect(refused).toBeLessThan(111);
    expect(engine.stats().kvBlocksUsed).toBe(0);
  });

  test("a failure in the middle of a stream is an error event, then the end", async () => {
    const { openai, engine, server, errors } = await serveSimulated();
    let steps = 0;
    engine.beforeStep = () => {
      if (++steps === 5) throw new LlmError("NUMERIC", "[attention] NaN in layer 3");
    };
    let text = "";
    const error = await errorOf(
      (async () => {
        for await (const { choices } of await openai.chat.completions.create({ ...hello, stream: true }))
          text += choices[0]!.delta.content ?? "";
      })(),
    );
    expect(error).toBeInstanceOf(OpenAI.APIError);
    expect(error.message).toContain("NaN in layer 3");
    expect("You said: hi".startsWith(text)).toBe(true);
    expect(text).not.toBe("");
    steps = 0;
    engine.beforeStep = () => {
      if (++steps === 5) throw new Error("secret path /home/x");
    };
    const body = await (
      await fetch(`${server.url}/v1/chat/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...hello, stream: true }),
      })
    ).text();
    const last = body.trimEnd().split("\n\n").at(-1)!;
    expect(JSON.parse(last.slice(6))).toEqual({
      error: { message: "internal error", type: "server_error", param: null, code: "internal" },
    });
    expect(errors.map(String)).toEqual(["Error: secret path /home/x"]);
    expect((await openai.chat.completions.create(hello)).choices[0]!.message.content).toBe("You said: hi");
  });

  test("a dead engine: open requests fail, new ones get 503, /health says why", async () => {
    const { openai, engine, server } = await serveSimulated();
    const { opened } = gate();
    engine.beforeStep = () => opened;
    const pending = errorOf(openai.chat.completions.create(hello));
    await until(() => engine.stats().running === 1, "it runs");
    engine.die("out of luck");
    expect(await pending).toMatchObject({ status: 503, code: "engine_dead" });
    expect(await errorOf(openai.chat.completions.create(hello))).toBeInstanceOf(OpenAI.InternalServerError);
    const health = await fetch(`${server.url}/health`);
    expect([health.status, await health.json()]).toEqual([
      503,
      { status: "dead", model: "simulated", error: "out of luck" },
    ]);
    expect(await (await fetch(`${server.url}/metrics`)).text()).toContain('llm_engine_up{model_name="simulated"} 0');
  });

  test("close lets running requests finish, refuses new ones and frees the port", async () => {
    const { openai, engine, server } = await serveSimulated();
    const { open, opened } = gate();
    engine.beforeStep = () => opened;
    const running = openai.chat.completions.create(hello).then(({ choices }) => choices[0]!.message.content);
    await until(() => engine.stats().running === 1, "it runs");
    const closing = server.close();
    await expect(fetch(`${server.url}/health`)).rejects.toThrow();
    open();
    expect(await running).toBe("You said: hi");
    await closing;
    const again = await createServer({ engine, port: server.port });
    await again.close();
  });

  test("close aborts what does not finish in time, and its clients learn why", async () => {
    const { openai, engine, server } = await serveSimulated();
    engine.reply = () => "x".repeat(400);
    engine.beforeStep = () => new Promise((resolve) => setTimeout(resolve, 10));
    const plain = errorOf(openai.chat.completions.create(hello));
    const streamed = errorOf(
      (async () => {
        for await (const _ of await openai.chat.completions.create({ ...hello, stream: true }));
      })(),
    );
    await until(() => engine.stats().running === 2, "both run");
    await server.close({ timeoutMs: 50 });
    expect(await plain).toMatchObject({ status: 503, code: "shutting_down" });
    expect((await streamed).message).toContain("shutting down");
    expect(engine.abortCount).toBe(2);
  });

  test("a taken port is a typed error", async () => {
    const { engine, server } = await serveSimulated();
    const error = await createServer({ engine, port: server.port }).catch((thrown: unknown) => thrown);
    expect(LlmError.isInstance(error, "IO")).toBe(true);
    expect((error as LlmError).data.code).toBe("EADDRINUSE");
    await expect(createServer({ engine, prot: 1 } as never)).rejects.toThrow(/prot/);
    await expect(createServer({ engine: {} as never })).rejects.toThrow(/expected an engine/);
    await expect(createServer({ engine: { a: engine }, modelName: "x" })).rejects.toThrow(/modelName/);
  });
});

describe("raw bytes", () => {
  test.each<[string, Buffer, number, string]>([
    ["broken JSON", post("/v1/chat/completions", '{"model": "simulated", '), 400, "invalid_json"],
    ["an empty body", post("/v1/chat/completions", ""), 400, "invalid_json"],
    ["a JSON array", post("/v1/chat/completions", "[1]"), 400, "invalid_json"],
    [
      "invalid UTF-8",
      post("/v1/chat/completions", Uint8Array.of(0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d)),
      400,
      "invalid_utf8",
    ],
    [
      "10,000 levels of nesting",
      post("/v1/chat/completions", `{"messages":${"[".repeat(10000)}${"]".repeat(10000)}}`),
      400,
      "invalid_json",
    ],
    [
      "a form",
      post("/v1/chat/completions", "model=x", "content-type: application/x-www-form-urlencoded\r\n"),
      415,
      "unsupported_media_type",
    ],
    [
      "a broken escape in the path",
      Buffer.from("GET /v1/models/%zz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
      400,
      "invalid_path",
    ],
    ["something that is not HTTP", Buffer.from("hello there\r\n\r\n"), 400, "malformed_request"],
    [
      "headers beyond all bounds",
      Buffer.from(`GET / HTTP/1.1\r\nx: ${"a".repeat(100_000)}\r\n\r\n`),
      431,
      "malformed_request",
    ],
    ["an oversized body", post("/v1/chat/completions", "x".repeat(2000)), 413, "body_too_large"],
  ])("%s gets an error in OpenAI's shape", async (_, bytes, status, code) => {
    const { server } = await serveSimulated({ bodyLimitBytes: code === "body_too_large" ? 1000 : 1_000_000 });
    const answer = await raw(server.port, bytes);
    expect(answer).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    const { error } = JSON.parse(answer.slice(answer.indexOf("\r\n\r\n") + 4)) as { error: Record<string, unknown> };
    expect(error).toMatchObject({ message: expect.any(String), type: "invalid_request_error", code });
    expect(Object.keys(error)).toEqual(["message", "type", "param", "code"]);
  });

  test("an oversized body without a length is cut off", async () => {
    const { server } = await serveSimulated({ bodyLimitBytes: 1000 });
    const answer = await raw(
      server.port,
      `POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n${"400\r\n" + "x".repeat(1024) + "\r\n"}${"400\r\n" + "x".repeat(1024) + "\r\n"}`,
    );
    expect(answer).toMatch(/^HTTP\/1.1 413 /);
  });

  test("a client that hangs up in the middle of its body leaves nothing behind", async () => {
    const { server, openai, engine } = await serveSimulated();
    await raw(
      server.port,
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{",
      { end: true },
    );
    expect((await openai.chat.completions.create(hello)).choices).toHaveLength(1);
    expect(engine.requests).toHaveLength(1);
  });

  test("an engine step is one write: the events of all answers of a request share a chunk", async () => {
    const { server, engine } = await serveSimulated();
    engine.reply = () => "abcdefgh";
    engine.beforeStep = () => new Promise((resolve) => setTimeout(resolve, 3));
    const answer = await raw(
      server.port,
      post("/v1/chat/completions", JSON.stringify({ ...hello, stream: true, n: 4 })),
    );
    const body = answer.slice(answer.indexOf("\r\n\r\n") + 4);
    const chunks = [...body.matchAll(/^[0-9a-f]+\r\n/gm)].length - 1;
    expect(body.match(/"content":"[a-h]"/g)).toHaveLength(32);
    expect(chunks).toBeLessThanOrEqual(engine.stats().steps + 1);
    expect(answer).toMatch(/content-type: text\/event-stream/);
    expect(body.trimEnd()).toMatch(/data: \[DONE\]\s+0$/);
  });

  test("awkward characters survive: every event is one line", async () => {
    const { server, engine } = await serveSimulated();
    const text = 'a"b\\c\u2028d\u2029e\u0000f\r\ng\n\nh';
    engine.reply = () => text;
    const answer = await raw(
      server.port,
      post("/v1/completions", JSON.stringify({ model: "simulated", prompt: "x", max_tokens: 100, stream: true })),
    );
    const lines = answer.split("\n").filter((line) => line.startsWith("data: {"));
    expect(lines.map((line) => (JSON.parse(line.slice(6)) as OpenAI.Completion).choices[0]!.text).join("")).toBe(text);
  });

  test("a silent stream gets its headers and comments while the prompt is read", async () => {
    const { server, engine } = await serveSimulated({ pingIntervalMs: 20 });
    const { open, opened } = gate();
    engine.beforeStep = () => opened;
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...hello, stream: true }),
    });
    expect(response.status).toBe(200);
    const reader = response.body!.getReader();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe(": ping\n\n");
    open();
    let rest = "";
    for (let item = await reader.read(); !item.done; item = await reader.read())
      rest += Buffer.from(item.value).toString();
    expect(rest).toContain("[DONE]");
  });

  test("a reader that stops reading holds up neither memory nor others", async () => {
    const { server, openai, engine } = await serveSimulated({}, { maxTokens: 4096, blockCount: 4096 });
    engine.reply = (prompt) => (prompt.includes("hi") ? "ok" : "y".repeat(4000));
    const socket = createConnection({ port: server.port, host: "127.0.0.1" });
    socket.pause();
    // 20 alternatives a token make some 9 MB of events, more than the sockets' buffers take.
    socket.write(
      post(
        "/v1/chat/completions",
        JSON.stringify({
          model: "simulated",
          messages: [{ role: "user", content: "long" }],
          logprobs: true,
          top_logprobs: 20,
          stream: true,
        }),
      ),
    );
    await until(() => engine.stats().running === 1, "it runs");
    expect((await openai.chat.completions.create(hello)).choices[0]!.message.content).toBe("ok");
    await until(() => engine.stats().running === 0, "the engine finished although nobody reads");
    let received = "";
    socket.on("data", (chunk: Buffer) => (received += chunk.toString()));
    socket.resume();
    await new Promise((resolve) => socket.on("close", resolve));
    expect(received.length).toBeGreaterThan(5_000_000);
    expect(received.match(/"content":"y"/g)).toHaveLength(4000);
    expect(received).toContain("data: [DONE]");
  });

  test("a connection serves further requests after a stream; HEAD and CORS preflights work", async () => {
    const { server } = await serveSimulated({ corsOrigin: "https://app.example" });
    const stream = (connection: string) =>
      post("/v1/completions", JSON.stringify({ model: "simulated", prompt: "x", stream: true }))
        .toString()
        .replace("connection: close", `connection: ${connection}`);
    const answers = await raw(server.port, stream("keep-alive") + stream("close"));
    expect(answers.match(/\[DONE\]/g)).toHaveLength(2);
    const head = await fetch(`${server.url}/v1/models`, { method: "HEAD" });
    expect([head.status, await head.text()]).toEqual([200, ""]);
    const preflight = await fetch(`${server.url}/v1/chat/completions`, {
      method: "OPTIONS",
      headers: { "access-control-request-headers": "authorization,x-stainless-os" },
    });
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get("access-control-allow-origin")).toBe("https://app.example");
    expect(preflight.headers.get("access-control-allow-headers")).toBe("authorization,x-stainless-os");
  });

  test("request ids are kept when harmless, else made", async () => {
    const { server } = await serveSimulated();
    const id = async (given: string) =>
      (await fetch(`${server.url}/version`, { headers: { "x-request-id": given } })).headers.get("x-request-id");
    expect(await id("abc-1")).toBe("abc-1");
    expect(await id("<script>")).toMatch(/^req_/);
  });
});
