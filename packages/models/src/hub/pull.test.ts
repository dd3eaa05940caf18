import { createHash } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import type { PullOptions, PullProgress } from "./options.js";
import { resolvePullOptions, selectFiles } from "./options.js";
import { pullDataset, pullModel, resolveModelFolder } from "./pull.js";

/** What may go wrong with the next answer for a file. */
type Fault =
  | { status: number; headers?: Record<string, string> }
  | { cutAfter: number }
  | { content: Buffer }
  | { ignoreRange: true }
  | { wrongRange: true };

const commit = "0123456789abcdef0123456789abcdef01234567";
const sha256 = (content: Buffer): string => createHash("sha256").update(content).digest("hex");
const gitSha1 = (content: Buffer): string =>
  createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");
const bytes = (length: number, seed: number): Buffer =>
  Buffer.from(Uint8Array.from({ length }, (_, at) => (at * 31 + seed + (at >> 8)) & 255));

const weights = [bytes(300_000, 1), bytes(200_000, 2)];
const files = new Map<string, { content: Buffer; lfs: boolean }>([
  ["README.md", { content: Buffer.from("# model"), lfs: false }],
  ["config.json", { content: Buffer.from('{"a":1}'), lfs: false }],
  ["empty.json", { content: Buffer.alloc(0), lfs: false }],
  ["model-00001-of-00002.safetensors", { content: weights[0]!, lfs: true }],
  ["model-00002-of-00002.safetensors", { content: weights[1]!, lfs: true }],
  ["nested/a b#c.json", { content: Buffer.from('{"b":2}'), lfs: false }],
  ["pytorch_model.bin", { content: bytes(1000, 3), lfs: true }],
  ["tokenizer.model", { content: bytes(5000, 4), lfs: true }],
]);
const wantedByDefault = [
  "config.json",
  "empty.json",
  "model-00001-of-00002.safetensors",
  "model-00002-of-00002.safetensors",
  "nested/a b#c.json",
  "tokenizer.model",
];

interface Seen {
  host: "hub" | "cdn";
  path: string;
  headers: IncomingMessage["headers"];
}
let seen: Seen[] = [];
let faults = new Map<string, Fault[]>();
let requireToken: string | undefined;
let running = 0;
let mostRunning = 0;

function send(response: ServerResponse, request: IncomingMessage, name: string): void {
  const original = files.get(name)!.content;
  const fault = faults.get(name)?.shift();
  if (fault !== undefined && "status" in fault) {
    response.writeHead(fault.status, fault.headers).end();
    return;
  }
  const content = fault !== undefined && "content" in fault ? fault.content : original;
  const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? "");
  const begin = range !== null && !(fault !== undefined && "ignoreRange" in fault) ? Number(range[1]) : 0;
  if (begin >= content.length && begin > 0) {
    response.writeHead(416).end();
    return;
  }
  const said = fault !== undefined && "wrongRange" in fault ? 0 : begin;
  const part = content.subarray(begin);
  response.writeHead(begin > 0 ? 206 : 200, {
    "content-length": part.length,
    ...(begin > 0 ? { "content-range": `bytes ${said}-${content.length - 1}/${content.length}` } : {}),
  });
  if (fault !== undefined && "cutAfter" in fault) {
    response.write(part.subarray(0, fault.cutAfter), () => setTimeout(() => response.destroy(), 300));
    return;
  }
  running++;
  mostRunning = Math.max(mostRunning, running);
  setTimeout(() => {
    running--;
    response.end(part);
  }, 10);
}

function cdn(request: IncomingMessage, response: ServerResponse): void {
  const url = new URL(request.url!, "http://x");
  seen.push({ host: "cdn", path: url.pathname, headers: request.headers });
  const name = [...files.keys()].find((path) => url.pathname === `/${sha256(files.get(path)!.content)}`)!;
  if (url.searchParams.get("signature") !== "s3cret") response.writeHead(403).end();
  else send(response, request, name);
}

function hub(request: IncomingMessage, response: ServerResponse): void {
  const url = new URL(request.url!, "http://x");
  const path = decodeURIComponent(url.pathname);
  seen.push({ host: "hub", path, headers: request.headers });
  const json = (value: unknown, headers: Record<string, string> = {}): void => {
    response.writeHead(200, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));
  };
  const refuse = (status: number, code?: string): void => {
    response.writeHead(status, code === undefined ? {} : { "x-error-code": code }).end();
  };
  const fault = faults.get(path)?.shift();
  if (fault !== undefined && "status" in fault) return void response.writeHead(fault.status, fault.headers).end("{}");

  if (path.includes("org/gated")) return refuse(403, "GatedRepo");
  if (path.includes("org/absent"))
    return refuse(request.headers.authorization === undefined ? 401 : 404, "RepoNotFound");
  if (
    requireToken !== undefined &&
    request.headers.authorization !== `Bearer ${requireToken}` &&
    request.headers.cookie !== `m_session_id=${requireToken}`
  )
    return refuse(401);
  if (path.startsWith("/api/models/old-name/")) {
    response.writeHead(307, { location: url.pathname.replace("old-name", "org/name") + url.search }).end();
    return;
  }

  const revision = /^\/api\/(?:models|datasets)\/org\/name\/revision\/(.+)$/.exec(path);
  if (revision !== null)
    return ["main", "refs/pr/1", commit].includes(revision[1]!)
      ? json({ sha: commit })
      : refuse(404, "RevisionNotFound");
  if (/^\/api\/(?:models|datasets)\/org\/name\/tree\//.test(path)) {
    if (!path.endsWith(`/tree/${commit}`)) return refuse(404, "RevisionNotFound");
    const entries = [...files].map(([name, { content, lfs }]) => ({
      type: "file",
      path: name,
      size: content.length,
      oid: lfs ? "f".repeat(40) : gitSha1(content),
      ...(lfs ? { lfs: { oid: sha256(content), size: content.length, pointerSize: 130 } } : {}),
    }));
    const page = Number(url.searchParams.get("cursor") ?? 0);
    const next = `<http://${request.headers.host}${url.pathname}?recursive=true&cursor=${page + 1}>; rel="next"`;
    return json(
      [...entries.slice(page * 3, page * 3 + 3), { type: "directory", path: "nested", size: 0, oid: "0" }],
      page < 2 ? { link: next } : {},
    );
  }
  const resolve = /^\/(?:datasets\/)?org\/name\/resolve\/([0-9a-f]{40})\/(.+)$/.exec(path);
  if (resolve !== null) {
    const file = files.get(resolve[2]!);
    if (file === undefined) return refuse(404, "EntryNotFound");
    if (!file.lfs) return send(response, request, resolve[2]!);
    response.writeHead(302, { location: `${cdnUrl}/${sha256(file.content)}?signature=s3cret` }).end();
    return;
  }

  const listed = [...files].map(([name, { content }]) => ({
    Path: name,
    Name: name,
    Type: "blob",
    Size: content.length,
    Sha256: name === "config.json" ? "" : sha256(content),
    Revision: "c1",
  }));
  if (path === "/api/v1/models/org/name/repo/files") {
    if (url.searchParams.get("Revision") !== "master")
      return json({ Code: 10010205001, Message: "revision not found", Success: false, Data: null });
    return json({ Code: 200, Success: true, Data: { Files: [...listed, { Path: "nested", Type: "tree", Size: 0 }] } });
  }
  if (path === "/api/v1/datasets/org/name") return json({ Code: 200, Data: { Id: 77, Type: 0 } });
  if (path === "/api/v1/datasets/77/repo/tree")
    return json({ Code: 200, Data: { Files: url.searchParams.get("PageNumber") === "1" ? listed : [] } });
  if (path === "/api/v1/models/org/name/repo" || path === "/api/v1/datasets/org/name/repo") {
    const name = url.searchParams.get("FilePath")!;
    return files.has(name) ? send(response, request, name) : refuse(404);
  }
  refuse(404);
}

let servers: Server[];
let hubUrl: string;
let cdnUrl: string;
let root: string;

beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), "pull-"));
  servers = [createServer(hub), createServer(cdn)];
  await Promise.all(servers.map((server) => new Promise<void>((done) => void server.listen(0, "127.0.0.1", done))));
  [hubUrl, cdnUrl] = servers.map((server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`) as [
    string,
    string,
  ];
});
afterAll(() => {
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
  rmSync(root, { recursive: true, force: true });
});

let cacheDir: string;
let count = 0;
beforeEach(() => {
  seen = [];
  faults = new Map();
  requireToken = undefined;
  mostRunning = 0;
  cacheDir = join(root, `cache-${count++}`);
  for (const name of [
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "MODELSCOPE_API_TOKEN",
    "HF_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
  ])
    vi.stubEnv(name, "");
  vi.stubEnv("HF_HOME", join(root, "home"));
});
afterEach(() => vi.unstubAllEnvs());

const options = (more: PullOptions = {}): PullOptions => ({
  endpoint: hubUrl,
  ...(more.localDir === undefined ? { cacheDir } : {}),
  retryDelayMs: 1,
  ...more,
});
const list = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => statSync(join(folder, name)).isFile())
    .sort();
const repository = (): string => join(cacheDir, "models--org--name");
const [one] = ["model-00001-of-00002.safetensors"];
const downloads = (): Seen[] => seen.filter(({ path, host }) => host === "cdn" || path.includes("/resolve/"));

function expectWhole(folder: string, names: string[]): void {
  expect(list(folder).filter((name) => !name.startsWith(".cache"))).toEqual(names);
  for (const name of names) expect(readFileSync(join(folder, name)).equals(files.get(name)!.content), name).toBe(true);
}

describe("pullModel from Hugging Face", () => {
  it("makes the hub's cache layout with relative links and takes what a model needs", async () => {
    const folder = await pullModel("org/name", options());
    expect(folder).toBe(join(repository(), "snapshots", commit));
    expectWhole(folder, wantedByDefault);
    expect(readFileSync(join(repository(), "refs", "main"), "utf8")).toBe(commit);
    expect(readlinkSync(join(folder, one!))).toBe(`../../blobs/${sha256(weights[0]!)}`);
    expect(readlinkSync(join(folder, "nested/a b#c.json"))).toBe(
      `../../../blobs/${gitSha1(files.get("nested/a b#c.json")!.content)}`,
    );
    expect(readdirSync(join(repository(), "blobs")).length).toBe(wantedByDefault.length);
    expect(existsSync(join(repository(), "trees", `${commit}.json`))).toBe(false);
    expect(mostRunning).toBeGreaterThan(1);
  });

  it("asks nothing but the revision when everything is there, and nothing at all for a commit", async () => {
    await pullModel("org/name", options());
    seen = [];
    const progress: PullProgress[] = [];
    await pullModel("org/name", options({ onProgress: (event) => progress.push(event) }));
    expect(seen.map(({ path }) => path)).toEqual(["/api/models/org/name/revision/main"]);
    expect(progress.map(({ file }) => file).sort()).toEqual(wantedByDefault);
    seen = [];
    expect(await pullModel("org/name", options({ revision: commit }))).toContain(commit);
    expect(seen).toEqual([]);
  });

  it("fetches only what is missing after a blob was lost or cut", async () => {
    const folder = await pullModel("org/name", options());
    const blobs = join(repository(), "blobs");
    rmSync(join(blobs, sha256(weights[0]!)));
    truncateSync(join(blobs, sha256(weights[1]!)), 10);
    seen = [];
    await pullModel("org/name", options({ revision: commit }));
    expect(downloads().filter(({ host }) => host === "cdn").length).toBe(2);
    expectWhole(folder, wantedByDefault);
  });

  it("works offline from the cache without a request and says what is missing", async () => {
    const folder = await pullModel("org/name", options());
    seen = [];
    expect(await pullModel("org/name", options({ offline: true }))).toBe(folder);
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    expect(await resolveModelFolder("org/name", options())).toBe(folder);
    await expect(pullModel("org/name", options({ include: ["*"] }))).rejects.toMatchObject({
      code: "IO",
      message: expect.stringMatching(/incomplete.*README\.md/),
    });
    await expect(pullModel("org/name", options({ revision: "v2" }))).rejects.toMatchObject({
      code: "IO",
      message: expect.stringMatching(/offline.*revision v2.*is not in/),
    });
    await expect(pullModel("org/other", options())).rejects.toMatchObject({ code: "IO" });
    rmSync(join(folder, one!));
    await pullModel("org/name", options());
    expectWhole(folder, wantedByDefault);
    rmSync(join(repository(), "blobs", sha256(weights[0]!)));
    await expect(pullModel("org/name", options())).rejects.toThrow(/model-00001-of-00002\.safetensors missing/);
    expect(seen).toEqual([]);
  });

  it("works offline from a cache that another program made, and sees a missing shard in it", async () => {
    const snapshot = join(repository(), "snapshots", commit);
    mkdirSync(snapshot, { recursive: true });
    mkdirSync(join(repository(), "refs"));
    writeFileSync(join(repository(), "refs", "main"), commit);
    writeFileSync(
      join(snapshot, "model.safetensors.index.json"),
      JSON.stringify({ weight_map: { a: "model-1.safetensors" } }),
    );
    await expect(pullModel("org/name", options({ offline: true }))).rejects.toThrow(/model-1\.safetensors missing/);
    writeFileSync(join(snapshot, "model-1.safetensors"), "");
    expect(await pullModel("org/name", options({ offline: true }))).toBe(snapshot);
  });

  it("writes the whole-repository listing only for a whole pull", async () => {
    await pullModel("org/name", options());
    const folder = await pullModel("org/name", options({ include: ["*"] }));
    expectWhole(folder, [...files.keys()].sort());
    const tree = JSON.parse(readFileSync(join(repository(), "trees", `${commit}.json`), "utf8"));
    expect(tree.format_version).toBe(1);
    expect(tree.files[one!]).toEqual({
      size: 300_000,
      blob_id: "f".repeat(40),
      lfs_sha256: sha256(weights[0]!),
      lfs_size: 300_000,
    });
    expect(tree.files["config.json"]).toEqual({ size: 7, blob_id: gitSha1(Buffer.from('{"a":1}')) });
    expect(existsSync(join(repository(), "trees", `${commit}.partial.json`))).toBe(false);
  });

  it("goes on where a broken connection stopped, many times over, within one pull", async () => {
    faults.set(one!, [{ cutAfter: 50_000 }, { cutAfter: 70_000 }, { cutAfter: 1 }, { cutAfter: 100_000 }]);
    const progress: number[] = [];
    const folder = await pullModel(
      "org/name",
      options({ retries: 1, onProgress: ({ file, bytes: done }) => void (file === one && progress.push(done)) }),
    );
    expectWhole(folder, wantedByDefault);
    const ranges = seen
      .filter(({ host, path }) => host === "cdn" && path.includes(sha256(weights[0]!)))
      .map(({ headers }) => headers.range);
    expect(ranges.length).toBe(5);
    expect(ranges[0]).toBeUndefined();
    for (const range of ranges.slice(1)) expect(Number(/^bytes=(\d+)-$/.exec(range!)![1])).toBeGreaterThan(0);
    expect(progress).toEqual([...progress].sort((a, b) => a - b));
    expect(progress.at(-1)).toBe(300_000);
  });

  it("goes on in a later pull after the first was stopped midway", async () => {
    const stop = new AbortController();
    const onProgress = ({ file, bytes: done }: PullProgress): void => {
      if (file === one && done > 0) stop.abort(new Error("enough"));
    };
    faults.set(one!, [{ cutAfter: 60_000 }]);
    await expect(pullModel("org/name", options({ include: [one!], signal: stop.signal, onProgress }))).rejects.toThrow(
      "enough",
    );
    const partial = join(repository(), "blobs", `${sha256(weights[0]!)}.incomplete`);
    const kept = statSync(partial).size;
    expect(kept).toBeGreaterThan(0);
    expect(existsSync(join(repository(), "snapshots"))).toBe(false);
    seen = [];
    expectWhole(await pullModel("org/name", options({ include: [one!] })), [one!]);
    expect(seen.find(({ host }) => host === "cdn")!.headers.range).toBe(`bytes=${kept}-`);
    expect(existsSync(partial)).toBe(false);
  });

  it("starts again when the server ignores or misstates the range, or the partial file is too long", async () => {
    const partial = join(repository(), "blobs", `${sha256(weights[0]!)}.incomplete`);
    for (const fault of [{ ignoreRange: true }, { wrongRange: true }, { status: 416 }] as Fault[]) {
      rmSync(cacheDir, { recursive: true, force: true });
      mkdirSync(join(repository(), "blobs"), { recursive: true });
      writeFileSync(partial, weights[0]!.subarray(0, 1234));
      faults.set(one!, [fault]);
      expectWhole(await pullModel("org/name", options({ include: [one!] })), [one!]);
    }
    rmSync(cacheDir, { recursive: true, force: true });
    mkdirSync(join(repository(), "blobs"), { recursive: true });
    writeFileSync(partial, Buffer.alloc(300_001));
    expectWhole(await pullModel("org/name", options({ include: [one!] })), [one!]);
  });

  it("removes a file that arrives damaged and says which checksum differs", async () => {
    const damaged = Buffer.from(weights[0]!);
    damaged[7]! ^= 1;
    faults.set(one!, [{ content: damaged }]);
    await expect(pullModel("org/name", options())).rejects.toMatchObject({
      code: "NETWORK",
      data: { file: one, expected: sha256(weights[0]!), actual: sha256(damaged) },
    });
    expect(readdirSync(join(repository(), "blobs")).some((name) => name.startsWith(sha256(weights[0]!)))).toBe(false);
    rmSync(cacheDir, { recursive: true });
    faults.set("config.json", [{ content: Buffer.from('{"a":2}') }]);
    await expect(pullModel("org/name", options())).rejects.toThrow(/config\.json.*damaged.*git sha1/);
    faults.set("config.json", [{ content: Buffer.from('{"a":1} and more') }]);
    await expect(pullModel("org/name", options({ retries: 0 }))).rejects.toThrow(/longer than the 7 bytes/);
    expectWhole(await pullModel("org/name", options()), wantedByDefault);
  });

  it("fetches a damaged leftover of an earlier pull once more from its beginning", async () => {
    mkdirSync(join(repository(), "blobs"), { recursive: true });
    writeFileSync(join(repository(), "blobs", `${sha256(weights[0]!)}.incomplete`), Buffer.alloc(1000));
    expectWhole(await pullModel("org/name", options({ include: [one!] })), [one!]);
    expect(seen.filter(({ host }) => host === "cdn").map(({ headers }) => headers.range)).toEqual([
      "bytes=1000-",
      undefined,
    ]);
  });

  it("tries again on 429 and 5xx and gives up after the retries", async () => {
    faults.set("/api/models/org/name/revision/main", [
      { status: 503 },
      { status: 429, headers: { "retry-after": "0" } },
    ]);
    faults.set(`/api/models/org/name/tree/${commit}`, [{ status: 500 }]);
    faults.set("config.json", [{ status: 502 }]);
    expectWhole(await pullModel("org/name", options()), wantedByDefault);
    faults.set(
      "/api/models/org/name/revision/main",
      Array.from({ length: 3 }, () => ({ status: 503 })),
    );
    await expect(pullModel("org/name", options({ retries: 2 }))).rejects.toMatchObject({
      code: "NETWORK",
      data: { status: 503 },
    });
  });

  it("explains 401, 403 and 404 and does not retry them", async () => {
    const refusals: [string, PullOptions, RegExp, number][] = [
      ["org/gated", {}, /gated.*accept its terms at .*org\/gated.*HF_TOKEN/, 403],
      ["org/absent", {}, /no public model org\/absent; if it is private or gated it needs a token/, 401],
      ["org/absent", { token: "hf_x" }, /there is no model org\/absent/, 404],
      ["org/name", { revision: "v9" }, /has no revision v9/, 404],
    ];
    for (const [id, more, message, status] of refusals) {
      seen = [];
      await expect(pullModel(id, options(more))).rejects.toMatchObject({
        code: "NETWORK",
        message: expect.stringMatching(message),
        data: { status },
      });
      expect(seen.length).toBe(1);
    }
    requireToken = "right";
    await expect(pullModel("org/name", options({ token: "wrong" }))).rejects.toThrow(/token was refused/);
  });

  it("says that a hub cannot be reached, at once", async () => {
    const closed = createServer();
    await new Promise<void>((done) => void closed.listen(0, "127.0.0.1", done));
    const endpoint = `http://127.0.0.1:${(closed.address() as AddressInfo).port}`;
    await new Promise((done) => closed.close(done));
    await expect(pullModel("org/name", options({ endpoint, retryDelayMs: 60_000 }))).rejects.toMatchObject({
      code: "NETWORK",
      message: expect.stringMatching(/ECONNREFUSED.*HF_HUB_OFFLINE/),
    });
  });

  it("sends the token to the endpoint only, from option, environment or token file", async () => {
    requireToken = "any-token";
    const check = (): void => {
      expect(seen.filter(({ host }) => host === "cdn").length).toBeGreaterThan(0);
      for (const { host, headers } of seen)
        expect(headers.authorization).toBe(host === "hub" ? "Bearer any-token" : undefined);
      seen = [];
      rmSync(cacheDir, { recursive: true });
    };
    await pullModel("org/name", options({ token: "any-token" }));
    check();
    mkdirSync(join(root, "home"), { recursive: true });
    writeFileSync(join(root, "home", "token"), "any-token\n");
    await pullModel("org/name", options());
    check();
    writeFileSync(join(root, "home", "token"), "another");
    vi.stubEnv("HF_TOKEN", "any-token");
    await pullModel("org/name", options());
    check();
    requireToken = undefined;
    await pullModel("org/name", options({ token: "" }));
    for (const { headers } of seen) expect(headers.authorization).toBeUndefined();
    rmSync(join(root, "home"), { recursive: true });
  });

  it("takes endpoint and cache from the environment, branches with slashes and renamed repositories", async () => {
    vi.stubEnv("HF_ENDPOINT", `${hubUrl}/`);
    vi.stubEnv("HF_HUB_CACHE", cacheDir);
    const folder = await pullModel("org/name", { revision: "refs/pr/1", include: ["config.json"] });
    expect(readFileSync(join(repository(), "refs", "refs", "pr", "1"), "utf8")).toBe(commit);
    expectWhole(folder, ["config.json"]);
    await expect(pullModel("old-name", { include: ["config.json"] })).rejects.toMatchObject({ data: { status: 404 } });
    expect(seen.some(({ path }) => path === "/api/models/org/name/revision/main")).toBe(true);
  });

  it("holds to the number of parallel downloads and downloads once for pulls that run at the same time", async () => {
    await pullModel("org/name", options({ parallel: 2, include: ["*"] }));
    expect(mostRunning).toBeLessThanOrEqual(2);
    rmSync(cacheDir, { recursive: true });
    seen = [];
    const folders = await Promise.all([
      pullModel("org/name", options()),
      pullModel("org/name", options()),
      pullModel("org/name", options()),
    ]);
    expect(new Set(folders).size).toBe(1);
    expect(seen.filter(({ host }) => host === "cdn").length).toBe(3);
    expect(existsSync(join(cacheDir, ".locks", "models--org--name", "pull.lock"))).toBe(false);
  });

  it("takes over the lock of a process that died", async () => {
    const lock = join(cacheDir, ".locks", "models--org--name", "pull.lock");
    mkdirSync(join(lock, ".."), { recursive: true });
    writeFileSync(lock, "1");
    utimesSync(lock, new Date(Date.now() - 60_000), new Date(Date.now() - 60_000));
    expectWhole(await pullModel("org/name", options()), wantedByDefault);
  });

  it("refuses paths that lead out of the folder", async () => {
    for (const path of ["../evil.json", "/etc/evil.json", "a/../../evil.json", "C:evil.json", "a\\..\\evil.json"]) {
      files.set(path, { content: Buffer.from("{}"), lfs: false });
      try {
        await expect(pullModel("org/name", options())).rejects.toThrow(/expected a path inside the repository/);
      } finally {
        files.delete(path);
      }
    }
    expect(existsSync(cacheDir)).toBe(false);
  });

  it("refuses wrong options and ids before any request", async () => {
    const wrong: [string, object][] = [
      ["org/name/more", {}],
      ["../name", {}],
      ["org/na--me", {}],
      ["", {}],
      ["org/name", { revison: "main" }],
      ["org/name", { parallel: 0 }],
      ["org/name", { revision: "../x" }],
      ["org/name", { localDir: "x" }],
      ["name", { source: "modelscope" }],
    ];
    for (const [id, more] of wrong)
      await expect((async () => pullModel(id, { ...options(), ...more }))()).rejects.toMatchObject({ code: "OPTIONS" });
    expect(seen).toEqual([]);
    await expect(pullModel("org/name", options({ include: ["*.gguf"] }))).rejects.toThrow(/none; it holds README\.md/);
  });
});

describe("pullModel into a folder", () => {
  it("puts plain files there, keeps good ones, repairs changed ones and works offline", async () => {
    const localDir = join(root, "local");
    expect(await pullModel("org/name", options({ localDir }))).toBe(localDir);
    expectWhole(localDir, wantedByDefault);
    expect(lstatSync(join(localDir, one!)).isFile()).toBe(true);
    const [at, name, seconds] = readFileSync(
      join(localDir, ".cache/huggingface/download", `${one}.metadata`),
      "utf8",
    ).split("\n");
    expect([at, name, Math.abs(Number(seconds) - Date.now() / 1000) < 60]).toEqual([commit, sha256(weights[0]!), true]);

    seen = [];
    await pullModel("org/name", options({ localDir }));
    expect(downloads()).toEqual([]);

    const changed = Buffer.from(weights[0]!);
    changed[0]! ^= 1;
    writeFileSync(join(localDir, one!), changed);
    utimesSync(join(localDir, one!), new Date(Date.now() + 60_000), new Date(Date.now() + 60_000));
    await expect(pullModel("org/name", options({ localDir, offline: true }))).rejects.toThrow(
      /model-00001-of-00002\.safetensors missing/,
    );
    await pullModel("org/name", options({ localDir }));
    expectWhole(localDir, wantedByDefault);
    expect(downloads().length).toBe(2);
    seen = [];
    expect(await pullModel("org/name", options({ localDir, offline: true }))).toBe(localDir);
    await expect(pullModel("org/other", options({ localDir, offline: true }))).rejects.toMatchObject({ code: "IO" });
    expect(seen).toEqual([]);
  });
});

describe("pullDataset", () => {
  it("takes all files under its own name", async () => {
    const folder = await pullDataset("org/name", options());
    expect(folder).toBe(join(cacheDir, "datasets--org--name", "snapshots", commit));
    expectWhole(folder, [...files.keys()].sort());
    expect(seen.some(({ path }) => path.startsWith("/datasets/org/name/resolve/"))).toBe(true);
  });
});

describe("ModelScope", () => {
  it("pulls models with checksums, resume, its own token and its own place in the cache", async () => {
    requireToken = "ms-token";
    vi.stubEnv("MODELSCOPE_API_TOKEN", "ms-token");
    faults.set(one!, [{ cutAfter: 50_000 }]);
    const more = options({ source: "modelscope" });
    const folder = await pullModel("org/name", more);
    expect(folder.startsWith(join(cacheDir, "modelscope--models--org--name", "snapshots"))).toBe(true);
    expectWhole(folder, wantedByDefault);
    expect(seen.some(({ headers }) => headers.range?.startsWith("bytes="))).toBe(true);
    seen = [];
    expect(await pullModel("org/name", { ...more, offline: true })).toBe(folder);
    expect(seen).toEqual([]);
    expect(await pullModel("org/name", more)).toBe(folder);
    expect(seen.length).toBe(1);
  });

  it("refuses damaged files and says what its errors mean", async () => {
    const more = options({ source: "modelscope" });
    faults.set(one!, [{ content: bytes(300_000, 9) }]);
    await expect(pullModel("org/name", more)).rejects.toMatchObject({
      code: "NETWORK",
      data: { expected: sha256(weights[0]!) },
    });
    await expect(pullModel("org/name", { ...more, revision: "v9" })).rejects.toThrow(/revision not found.*revision v9/);
    await expect(pullModel("org/nothing", more)).rejects.toThrow(
      /404: there is no model org\/nothing.*MODELSCOPE_API_TOKEN/,
    );
  });

  it("pulls data sets", async () => {
    const folder = await pullDataset("org/name", options({ source: "modelscope" }));
    expectWhole(folder, [...files.keys()].sort());
  });
});

describe("resolveModelFolder", () => {
  it("returns a folder as it is and refuses what is neither folder nor name", async () => {
    expect(await resolveModelFolder(root)).toBe(root);
    await expect(resolveModelFolder(join(root, "absent"))).rejects.toThrow(/does not exist/);
    await expect(resolveModelFolder("absent")).rejects.toThrow(/"org\/name"/);
    writeFileSync(join(root, "a-file"), "");
    await expect(resolveModelFolder(join(root, "a-file"))).rejects.toThrow(/which is a file/);
    expect(await resolveModelFolder("org/name", options({ include: ["config.json"] }))).toContain(commit);
  });
});

describe("selectFiles", () => {
  const select = (names: string[], include?: string[], exclude: string[] = []): string[] =>
    selectFiles(
      names.map((path) => ({ path })),
      "model",
      { include, exclude },
    ).map(({ path }) => path);

  it("takes .bin only where there are no safetensors", () => {
    expect(select(["pytorch_model.bin", "config.json", "x.h5"])).toEqual(["pytorch_model.bin", "config.json"]);
    expect(select(["pytorch_model.bin", "model.safetensors"])).toEqual(["model.safetensors"]);
  });

  it("reads globs as huggingface_hub does", () => {
    const names = ["a.json", "sub/b.json", "sub/c.txt", "a+b.txt", "x1", "x2", "x-"];
    expect(select(names, ["*.json"])).toEqual(["a.json", "sub/b.json"]);
    expect(select(names, ["sub/"])).toEqual(["sub/b.json", "sub/c.txt"]);
    expect(select(names, ["*"], ["sub/*", "x?"])).toEqual(["a.json", "a+b.txt"]);
    expect(select(names, ["x[12]"])).toEqual(["x1", "x2"]);
    expect(select(names, ["x[!1]"])).toEqual(["x2", "x-"]);
    expect(select(names, ["a+b.txt"])).toEqual(["a+b.txt"]);
  });
});

describe("resolvePullOptions", () => {
  it("finds the cache where huggingface_hub does", () => {
    expect(resolvePullOptions({}, "x").cacheDir).toBe(join(root, "home", "hub"));
    vi.stubEnv("HF_HOME", "");
    vi.stubEnv("XDG_CACHE_HOME", "/xdg");
    expect(resolvePullOptions({}, "x").cacheDir).toBe("/xdg/huggingface/hub");
    expect(resolvePullOptions({ source: "modelscope" }, "x")).toMatchObject({
      endpoint: "https://modelscope.cn",
      revision: "master",
    });
  });
});
