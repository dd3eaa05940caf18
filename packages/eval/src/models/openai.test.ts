import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { LlmError } from "@llm/core";
import type { GenerateEvent } from "@llm/models";
import { afterEach, describe, expect, it } from "vitest";
import { evaluate } from "../evaluate.js";
import { byteTokenizer } from "../fake-model.test-support.js";
import { multipleChoice } from "../tasks/multiple-choice.js";
import { perplexity } from "../tasks/perplexity.js";
import { openaiModel } from "./openai.js";
import { serverSentEvents } from "./server-sent-events.js";

type Body = Record<string, unknown>;
type Handler = (body: Body, response: ServerResponse, request: IncomingMessage, count: number) => void | Promise<void>;

let server: Server | undefined;
afterEach(async () => {
  server?.closeAllConnections();
  await new Promise((resolve) => (server ? server.close(resolve) : resolve(undefined)));
  server = undefined;
});

async function serve(
  handler: Handler,
): Promise<{ baseUrl: string; requests: { url: string; body: Body; authorization: string | undefined }[] }> {
  const requests: { url: string; body: Body; authorization: string | undefined }[] = [];
  server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const body = JSON.parse(Buffer.concat(chunks).toString()) as Body;
      requests.push({ url: request.url!, body, authorization: request.headers.authorization });
      void handler(body, response, request, requests.length);
    });
  });
  await new Promise<void>((resolve) => server!.listen(0, "127.0.0.1", resolve));
  return { baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`, requests };
}

const sendJson = (
  response: ServerResponse,
  value: unknown,
  status = 200,
  headers: Record<string, string> = {},
): void => {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(value));
};

/** Sends bytes in the given pieces, each in a packet of its own. */
async function sendPieces(response: ServerResponse, bytes: Buffer, size: number): Promise<void> {
  response.writeHead(200, { "content-type": "text/event-stream" });
  for (let at = 0; at < bytes.length; at += size) {
    response.write(bytes.subarray(at, at + size));
    await new Promise((resolve) => setImmediate(resolve));
  }
  response.end();
}

const event = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const chatStream = (pieces: string[], finish = "stop"): Buffer =>
  Buffer.from(
    [
      ": a comment\r\n",
      event({ choices: [{ index: 0, delta: { role: "assistant" } }] }),
      ...pieces.map((content) => event({ choices: [{ index: 0, delta: { content }, finish_reason: null }] })),
      event({ choices: [{ index: 0, delta: {}, finish_reason: finish }] }),
      event({ choices: [], usage: { prompt_tokens: 7, completion_tokens: 3 } }),
      "data: [DONE]\n\n",
    ].join(""),
  );

const collect = async (events: AsyncIterable<GenerateEvent>): Promise<GenerateEvent[]> => {
  const list: GenerateEvent[] = [];
  for await (const one of events) list.push(one);
  return list;
};

describe("serverSentEvents", () => {
  it("reads the same events however the bytes are cut", async () => {
    const bytes = Buffer.from(
      'data: {"a":"十三🙂"}\r\n\r\n: note\r\nid: 4\r\ndata:two\r\ndata: lines\r\n\r\ndata\n\ndata: [DONE]\n\n',
    );
    for (let size = 1; size <= bytes.length; size++) {
      const pieces = async function* (): AsyncGenerator<Uint8Array> {
        for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
      };
      const events: string[] = [];
      for await (const data of serverSentEvents(pieces())) events.push(data);
      expect(events).toEqual(['{"a":"十三🙂"}', "two\nlines", "", "[DONE]"]);
    }
  });
});

describe("openaiModel", () => {
  it.each([1, 3, 7, 100_000])("streams a conversation cut into packets of %i bytes", async (size) => {
    const { baseUrl, requests } = await serve((_body, response) =>
      sendPieces(response, chatStream(["十", "三🙂", " ok"]), size),
    );
    const model = openaiModel({ baseUrl: `${baseUrl}/`, model: "m", apiKey: "secret" });
    const events = await collect(
      model.generate([{ messages: [{ role: "user", content: "hi" }] }], {
        maxTokens: 5,
        stop: ["\n"],
        topK: 3,
        seed: 9,
      }),
    );
    expect(events.filter((one) => one.type === "text-delta").map((one) => one.text)).toEqual(["十", "三🙂", " ok"]);
    expect(events.at(-1)).toEqual({
      type: "finish",
      index: 0,
      reason: "stop",
      text: "十三🙂 ok",
      tokenIds: [],
      usage: { promptTokens: 7, completionTokens: 3 },
    });
    expect(requests).toEqual([
      {
        url: "/v1/chat/completions",
        authorization: "Bearer secret",
        body: {
          model: "m",
          messages: [{ role: "user", content: "hi" }],
          max_tokens: 5,
          temperature: 0,
          seed: 9,
          top_k: 3,
          stop: ["\n"],
          stream: true,
          stream_options: { include_usage: true },
        },
      },
    ]);
  });

  it("sends text and ids to completions, several at once, without streaming when told", async () => {
    let running = 0;
    let most = 0;
    const { baseUrl, requests } = await serve(async (body, response) => {
      most = Math.max(most, ++running);
      await new Promise((resolve) => setTimeout(resolve, 5));
      running--;
      sendJson(response, {
        choices: [{ text: `<${String(body["prompt"])}>`, finish_reason: "length" }],
        usage: { prompt_tokens: 1, completion_tokens: 2 },
      });
    });
    const model = openaiModel({ baseUrl, model: "m", stream: false, concurrency: 2, tokenizer: byteTokenizer() });
    const events = await collect(model.generate(["a", "b", Int32Array.of(7, 8), "d"]));
    const finished = events.filter((one) => one.type === "finish").sort((left, right) => left.index - right.index);
    expect(finished.map((one) => one.text)).toEqual(["<a>", "<b>", "<7,8>", "<d>"]);
    expect(finished[0]).toMatchObject({ reason: "length", tokenIds: [60, 97, 62] });
    expect(most).toBe(2);
    expect(requests.every((request) => request.url === "/v1/completions")).toBe(true);
    expect(requests.map((request) => request.body["prompt"])).toContainEqual([7, 8]);
  });

  it("tries again after 429 and 503 and gives up with the server's message", async () => {
    const { baseUrl, requests } = await serve((_body, response, _request, count) => {
      if (count === 1) return sendJson(response, { error: { message: "slow down" } }, 429, { "retry-after": "0" });
      if (count === 2) return sendJson(response, "down", 503);
      if (count === 3) return sendPieces(response, chatStream(["yes"]), 1000);
      return sendJson(response, { error: { message: "no such model" } }, count === 4 ? 404 : 500);
    });
    const model = openaiModel({ baseUrl, model: "m", retries: 2, retryDelayMs: 1 });
    const ask = (): Promise<GenerateEvent[]> =>
      collect(model.generate([{ messages: [{ role: "user", content: "?" }] }]));
    expect((await ask()).at(-1)).toMatchObject({ text: "yes" });
    expect(requests.length).toBe(3);
    await expect(ask()).rejects.toThrow("got 404: no such model");
    expect(requests.length).toBe(4);
    await expect(ask()).rejects.toSatisfy(
      (error) => LlmError.isInstance(error, "NETWORK") && error.data["status"] === 500,
    );
    expect(requests.length).toBe(7);
  });

  it("reports a refused connection, a timeout, a broken stream and an error inside it", async () => {
    const refused = openaiModel({ baseUrl: "http://127.0.0.1:1/v1", model: "m", retries: 0 });
    await expect(collect(refused.generate(["x"]))).rejects.toThrow(/ECONNREFUSED|bad port/);
    let mode = 0;
    const { baseUrl } = await serve(async (_body, response) => {
      if (mode === 0) return;
      if (mode === 1) return sendPieces(response, Buffer.from(event({ choices: [{ text: "half" }] })), 1000);
      if (mode === 2) return sendPieces(response, Buffer.from(event({ error: { message: "engine died" } })), 1000);
      response.writeHead(200);
      response.write(event({ choices: [{ text: "half" }] }));
      setTimeout(() => response.destroy(), 5);
    });
    const model = openaiModel({ baseUrl, model: "m", retries: 0, timeoutMs: 50 });
    await expect(collect(model.generate(["x"]))).rejects.toThrow("no answer within 50 ms");
    const patient = openaiModel({ baseUrl, model: "m", retries: 0 });
    mode = 1;
    await expect(collect(patient.generate(["x"]))).rejects.toThrow("finish_reason");
    mode = 2;
    await expect(collect(patient.generate(["x"]))).rejects.toThrow("engine died");
    mode = 3;
    await expect(collect(patient.generate(["x"]))).rejects.toSatisfy((error) => LlmError.isInstance(error, "NETWORK"));
  });

  it("ends at the caller's signal and closes the connection", async () => {
    let closed = (): void => {};
    const gone = new Promise<void>((resolve) => (closed = resolve));
    const { baseUrl } = await serve((_body, response) => {
      response.on("close", closed);
      response.writeHead(200);
      response.write(event({ choices: [{ text: "begun" }] }));
    });
    const abort = new AbortController();
    const events: GenerateEvent[] = [];
    for await (const one of openaiModel({ baseUrl, model: "m" }).generate(["x"], { signal: abort.signal })) {
      events.push(one);
      abort.abort();
    }
    expect(events.at(-1)).toMatchObject({ type: "finish", reason: "abort", text: "begun" });
    await gone;
  });

  it("scores prompts where the server echoes their log-probabilities", async () => {
    const { baseUrl, requests } = await serve((body, response) => {
      const ids = body["prompt"] as number[];
      const values = [...ids.map((id, i) => (i === 0 ? null : -id / 100)), -9];
      const top = values.map((value, i) => (value === null ? null : { x: i === 2 ? -0.001 : value }));
      sendJson(response, {
        choices: [{ text: "", finish_reason: "length", logprobs: { token_logprobs: values, top_logprobs: top } }],
        usage: { prompt_tokens: ids.length, completion_tokens: 1 },
      });
    });
    const model = openaiModel({ baseUrl, model: "m", tokenizer: byteTokenizer() });
    const scores = await model.score(Int32Array.of(256, 5), [Int32Array.of(10, 20), Int32Array.of(0)]);
    expect(scores[0]!.logprob).toBeCloseTo(-0.3, 12);
    expect([...scores[0]!.tokenLogprobs]).toEqual([-0.1, -0.2]);
    expect(scores.map((score) => score.greedy)).toEqual([false, true]);
    expect(requests[0]!.body).toMatchObject({ prompt: [256, 5, 10, 20], echo: true, logprobs: 1, max_tokens: 1 });
    const results = await evaluate({ models: { model }, tasks: [perplexity({ text: "abc" })] });
    expect(results.cells[0]!.metrics[1]!.value).toBeCloseTo(0.98, 10);
  });

  it("names gen mode when the server or the missing tokenizer cannot score", async () => {
    let echo = false;
    const { baseUrl } = await serve((body, response) => {
      if ("messages" in body)
        return sendJson(response, { choices: [{ message: { content: "A" }, finish_reason: "stop" }] });
      if (echo) return sendJson(response, { choices: [{ text: "", finish_reason: "length" }] });
      return sendJson(response, { error: { message: "echo is not supported" } }, 400);
    });
    const rows = [{ question: "?", A: "x", B: "y", answer: "A" }];
    const model = openaiModel({ baseUrl, model: "m", stream: false });
    const able = openaiModel({ baseUrl, model: "m", tokenizer: byteTokenizer() });
    const results = await evaluate({
      models: { model, able },
      tasks: [multipleChoice(rows, { name: "gen" }), multipleChoice(rows, { name: "ppl", mode: "ppl" })],
    });
    expect(results[0]).toMatchObject({ task: "gen", metric: "accuracy", value: 1 });
    expect(results.cells[1]!.error!.message).toMatch(/expected the option tokenizer.*mode "gen"/);
    expect(results.cells[3]!.error).toMatchObject({ code: "UNSUPPORTED" });
    expect(results.cells[3]!.error!.message).toMatch(/echo is not supported.*mode "gen"/);
    echo = true;
    await expect(able.score(Int32Array.of(1), [Int32Array.of(2)])).rejects.toThrow("without token_logprobs");
    expect(() => openaiModel({ baseUrl: "nowhere", model: "m" })).toThrow("baseUrl");
  });
});
