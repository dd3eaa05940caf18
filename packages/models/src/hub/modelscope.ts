import { createHash } from "node:crypto";
import { NetworkError } from "@llm/core";
import type { HubClient } from "./http.js";
import type { ResolvedPullOptions } from "./options.js";
import type { HubFile, Remote, Repository } from "./remote.js";

interface Entry {
  Path?: unknown;
  Size?: unknown;
  Type?: unknown;
  Sha256?: unknown;
  Revision?: unknown;
}

const pageSize = 200;

/**
 * The ModelScope hub. It names no commit for a branch, so a snapshot is named by the sha1 of its listing (paths, sizes,
 * checksums): the same content has the same name.
 * @see modelscope/hub/api.py: get_model_files, list_repo_tree, get_dataset_file_url
 */
export function modelScope(
  { kind, id }: Repository,
  { endpoint, revision }: ResolvedPullOptions,
  client: HubClient,
): Remote {
  const api = `${endpoint}/api/v1/${kind}s`;
  const query = (values: Record<string, string | number>): string =>
    new URLSearchParams(Object.entries(values).map(([key, value]) => [key, String(value)])).toString();

  /** The `Data` of an answer; ModelScope reports failures also with status 200. */
  const ask = async (url: string): Promise<Record<string, unknown>> => {
    const answer = (await client.getJson(url)) as { Code?: unknown; Message?: unknown; Data?: unknown } | null;
    const data = answer?.Data;
    if (answer?.Code !== 200 || typeof data !== "object" || data === null) {
      throw new NetworkError(
        `[pull] ${url}: ${String(answer?.Message ?? "expected {Code: 200, Data}")} (is there a ${kind} ${id} with revision ${revision}?)`,
        {
          url,
          code: answer?.Code,
        },
      );
    }
    return data as Record<string, unknown>;
  };

  const toFile = (entry: Entry, url: string): HubFile => {
    const { Path: path, Size: size, Sha256: sha256, Revision: change } = entry;
    if (typeof path !== "string" || !Number.isSafeInteger(size)) {
      throw new NetworkError(`[pull] ${url}: expected Path and Size of each file, got ${JSON.stringify(entry)}`, {
        url,
      });
    }
    const known = typeof sha256 === "string" && /^[0-9a-f]{64}$/.test(sha256);
    const name = createHash("sha1")
      .update(JSON.stringify([path, size, change]))
      .digest("hex");
    return { path, size: size as number, blobId: `listed-${name}`, ...(known ? { sha256 } : {}) };
  };

  const filesOf = (data: Record<string, unknown>, url: string): Entry[] => {
    const files = data["Files"];
    if (!Array.isArray(files)) throw new NetworkError(`[pull] ${url}: expected Data.Files to be a list`, { url });
    return files as Entry[];
  };

  const list = async (): Promise<HubFile[]> => {
    const entries: Entry[] = [];
    let url = `${api}/${id}/repo/files?${query({ Revision: revision, Recursive: "true" })}`;
    if (kind === "model") {
      entries.push(...filesOf(await ask(url), url));
    } else {
      const { Id: number } = await ask(`${api}/${id}`);
      for (let page = 1; ; page++) {
        url = `${api}/${String(number)}/repo/tree?${query({ Revision: revision, Root: "/", Recursive: "True", PageNumber: page, PageSize: pageSize })}`;
        const files = filesOf(await ask(url), url);
        entries.push(...files);
        if (files.length < pageSize) break;
      }
    }
    return entries
      .filter((entry) => entry.Type !== "tree")
      .map((entry) => toFile(entry, url))
      .sort((a, b) => (a.path < b.path ? -1 : 1));
  };

  let listed: Promise<HubFile[]> | undefined;
  return {
    client,
    async resolveRevision() {
      listed = list();
      return createHash("sha1")
        .update(JSON.stringify(await listed))
        .digest("hex");
    },
    listFiles: () => (listed ??= list()),
    fileUrl: (_commit, path) =>
      kind === "model"
        ? `${api}/${id}/repo?${query({ Revision: revision, FilePath: path })}`
        : `${api}/${id}/repo?${query({ Source: "SDK", Revision: revision, FilePath: path, View: "False" })}`,
  };
}
