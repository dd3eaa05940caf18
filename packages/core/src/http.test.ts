import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { abortableFetch } from "./http.js";

const large = Buffer.alloc(200_000, 7);

/** `/silent` never answers, `/stuck` stops after its first bytes, `/large` comes in several parts; most answer with their path. */
const server = createServer((request, response) => {
  opened.push(request.url!);
  response.on("close", () => closed.push(request.url!));
  if (request.url === "/silent") return;
  if (request.url === "/stuck") response.write("first");
  else if (request.url === "/large") response.end(large);
  else if (request.url === "/moved") response.writeHead(302, { location: "/there" }).end();
  else if (request.url === "/empty") response.writeHead(204).end();
  else response.end(request.url);
});
let opened: string[];
let closed: string[];
let at: string;
let stopping: AbortController;

beforeEach(async () => {
  opened = [];
  closed = [];
  stopping = new AbortController();
  await new Promise<void>((done) => void server.listen(0, "127.0.0.1", done));
  at = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterEach(() => {
  server.closeAllConnections();
  return new Promise((done) => void server.close(done));
});

describe("abortableFetch", () => {
  it("fails whoever reads a body that has arrived and is read in parts", async () => {
    for (let parts = 0; parts < 4; parts++) {
      const stopped = new AbortController();
      const reader = (await abortableFetch(`${at}/large`, { signal: stopped.signal })).body!.getReader();
      for (let part = 0; part < parts; part++) await reader.read();
      await sleep(5);
      stopped.abort(new Error("enough"));
      const rest = (async () => {
        while (!(await reader.read()).done);
      })();
      await expect(rest, `after ${parts} parts`).rejects.toThrow("enough");
    }
  });

  it("ends a body of which nothing more comes", async () => {
    const reader = (await abortableFetch(`${at}/stuck`, { signal: stopping.signal })).body!.getReader();
    expect(Buffer.from((await reader.read()).value!).toString()).toBe("first");
    const rest = reader.read();
    stopping.abort(new Error("enough"));
    await expect(rest).rejects.toThrow("enough");
    await expect.poll(() => closed).toContain("/stuck");
  });

  it("ends a body that is read by text()", async () => {
    const text = (await abortableFetch(`${at}/stuck`, { signal: stopping.signal })).text();
    stopping.abort(new Error("enough"));
    await expect(text).rejects.toThrow("enough");
  });

  it("ends a request that nobody answers", async () => {
    const answer = abortableFetch(`${at}/silent`, { signal: stopping.signal });
    await expect.poll(() => opened).toEqual(["/silent"]);
    stopping.abort(new Error("enough"));
    await expect(answer).rejects.toThrow("enough");
    await expect.poll(() => closed).toContain("/silent");
    await expect(abortableFetch(`${at}/a`, { signal: stopping.signal })).rejects.toThrow("enough");
  });

  it("closes the connection of a body that is left in the middle", async () => {
    const response = await abortableFetch(`${at}/stuck`, { signal: stopping.signal });
    for await (const part of response.body as unknown as AsyncIterable<Uint8Array>) {
      expect(Buffer.from(part).toString()).toBe("first");
      break;
    }
    await expect.poll(() => closed).toContain("/stuck");
  });

  it("is fetch otherwise", async () => {
    const init = { signal: stopping.signal, redirect: "manual" as const };
    expect(await (await abortableFetch(`${at}/plain`, init)).text()).toBe("/plain");
    expect(large.equals(Buffer.from(await (await abortableFetch(`${at}/large`, init)).arrayBuffer()))).toBe(true);
    expect(await (await abortableFetch(`${at}/plain`)).text()).toBe("/plain");
    const moved = await abortableFetch(`${at}/moved`, init);
    expect([moved.status, moved.headers.get("location")]).toEqual([302, "/there"]);
    expect((await abortableFetch(`${at}/empty`, init)).status).toBe(204);
    await expect(abortableFetch("http://127.0.0.1:1", init)).rejects.toThrow("fetch failed");
  });
});
