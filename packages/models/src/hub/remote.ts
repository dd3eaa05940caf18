import { NetworkError } from "@llm/core";
import { findToken } from "./options.js";
import type { ResolvedPullOptions } from "./options.js";
import { HubClient } from "./http.js";
import { modelScope } from "./modelscope.js";

/** What is pulled. */
export interface Repository {
  kind: "model" | "dataset";
  id: string;
}

/** A file of a repository, as its listing describes it. */
export interface HubFile {
  /** With `/`, relative to the repository's root. */
  path: string;
  size: number;
  /** sha256 of the content, where the hub tells it (large files on Hugging Face, most files on ModelScope). */
  sha256?: string;
  /** git's name of the object: the sha1 of the content (small files on Hugging Face); anything else checks nothing. */
  blobId: string;
}

/** A hub, as far as a pull needs it. */
export interface Remote {
  readonly client: HubClient;
  /** What the branch or tag means now: 40 hexadecimal digits. */
  resolveRevision(): Promise<string>;
  /** All files at a commit. */
  listFiles(commit: string): Promise<HubFile[]>;
  /** Address of a file. */
  fileUrl(commit: string, path: string): string;
}

/** True for a name of a commit (as opposed to a branch or tag). */
export function isCommit(revision: string): boolean {
  return /^[0-9a-f]{40}$/.test(revision);
}

function encodePath(path: string): string {
  return path.split("/").map(encodeURIComponent).join("/");
}

/** Refuses paths that would leave the folder they are written to. */
function checkPath(path: string, url: string): void {
  const parts = path.split("/");
  if (
    path === "" ||
    path.includes("\\") ||
    path.includes("\0") ||
    /^[a-z]:/i.test(path) ||
    parts.some((part) => part === "" || part === "." || part === "..")
  ) {
    throw new NetworkError(`[pull] ${url} lists ${JSON.stringify(path)}, expected a path inside the repository`, {
      url,
      path,
    });
  }
}

/** What a refusal means, for people. */
function explain({ kind, id }: Repository, { source, revision, endpoint }: ResolvedPullOptions, hasToken: boolean) {
  const page = `${endpoint}/${kind === "dataset" ? "datasets/" : source === "modelscope" ? "models/" : ""}${id}`;
  const how =
    source === "modelscope" ? "option token or MODELSCOPE_API_TOKEN" : "option token, HF_TOKEN or `hf auth login`";
  return (status: number, headers: Headers): string => {
    const code = headers.get("x-error-code");
    if (code === "GatedRepo" || (status === 403 && code === null && source === "huggingface")) {
      return `${status}: ${kind} ${id} is gated or not open to this account; accept its terms at ${page} and give a token of that account (${how})`;
    }
    if (code === "RevisionNotFound") return `${status}: ${kind} ${id} has no revision ${revision}`;
    if (code === "EntryNotFound") return `${status}: ${kind} ${id} has no such file at revision ${revision}`;
    if (status === 401 || status === 403) {
      return hasToken
        ? `${status}: the token was refused (wrong, expired, or without the right to read ${id}), or there is no ${kind} ${id}`
        : `${status}: there is no public ${kind} ${id}; if it is private or gated it needs a token (${how})`;
    }
    if (status === 404) {
      return `404: there is no ${kind} ${id} with revision ${revision} at ${endpoint}${hasToken ? "" : `, or it is private and needs a token (${how})`}`;
    }
    const message = headers.get("x-error-message");
    return `answered ${status}${message ? `: ${message}` : ""}`;
  };
}

/** Connects a repository to its hub. No request yet. */
export async function openRemote(repository: Repository, options: ResolvedPullOptions): Promise<Remote> {
  const token = await findToken(options);
  const onModelScope = options.source === "modelscope";
  const credentials: Record<string, string> =
    token === undefined
      ? {}
      : onModelScope
        ? { cookie: `m_session_id=${token}` }
        : { authorization: `Bearer ${token}` };
  const client = new HubClient({
    ...options,
    signal: options.signal,
    credentials,
    explain: explain(repository, options, token !== undefined),
  });
  const remote = onModelScope ? modelScope(repository, options, client) : huggingFace(repository, options, client);
  return {
    ...remote,
    async listFiles(commit) {
      const files = await remote.listFiles(commit);
      for (const { path } of files) checkPath(path, options.endpoint);
      return files;
    },
  };
}

function huggingFace({ kind, id }: Repository, { endpoint, revision }: ResolvedPullOptions, client: HubClient): Remote {
  const api = `${endpoint}/api/${kind}s/${id}`;
  return {
    client,
    fileUrl: (commit, path) =>
      `${endpoint}/${kind === "dataset" ? "datasets/" : ""}${id}/resolve/${commit}/${encodePath(path)}`,
    async resolveRevision() {
      if (isCommit(revision)) return revision;
      const url = `${api}/revision/${encodeURIComponent(revision)}`;
      const info = await client.getJson(url);
      const sha = (info as { sha?: unknown } | null)?.sha;
      if (typeof sha !== "string" || !isCommit(sha))
        throw new NetworkError(`[pull] ${url}: expected the commit in "sha", got ${JSON.stringify(sha)}`, { url });
      return sha;
    },
    async listFiles(commit) {
      const { listFiles } = await import("@huggingface/hub");
      const files: HubFile[] = [];
      // The token is added by the client, which knows where it may go.
      const get = async (input: unknown): Promise<Response> => {
        const { text, headers } = await client.get(String(input), { accept: "application/json" });
        const link = headers.get("link");
        return new Response(text, { headers: link === null ? {} : { link } });
      };
      for await (const entry of listFiles({
        repo: { type: kind, name: id },
        revision: commit,
        recursive: true,
        hubUrl: endpoint,
        fetch: get as typeof fetch,
      })) {
        if (entry.type !== "file") continue;
        const { path, size, lfs, oid } = entry;
        const valid = lfs === undefined ? oid !== undefined && isCommit(oid) : /^[0-9a-f]{64}$/.test(lfs.oid);
        if (!valid || !Number.isSafeInteger(size)) {
          throw new NetworkError(
            `[pull] ${api}/tree/${commit}: expected size and object name of ${path}, got ${JSON.stringify(entry)}`,
            { url: api, path },
          );
        }
        files.push(
          lfs === undefined
            ? { path, size, blobId: oid! }
            : { path, size: lfs.size, sha256: lfs.oid, blobId: oid ?? lfs.oid },
        );
      }
      return files;
    },
  };
}
