import { statSync } from "node:fs";
import { resolve } from "node:path";
import { IoError, LlmError, OptionsError } from "@llm/core";
import { downloadFile } from "./download.js";
import { withLock } from "./lock.js";
import { resolvePullOptions, selectFiles } from "./options.js";
import type { PullOptions, ResolvedPullOptions } from "./options.js";
import { isCommit, openRemote } from "./remote.js";
import type { HubFile, Repository } from "./remote.js";
import { findGaps, openCache, openLocalFolder } from "./store.js";
import type { Store } from "./store.js";

const idPattern = /^(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(\/[A-Za-z0-9][\w.-]*)?$/;

/**
 * Downloads a model from the Hugging Face hub or from ModelScope and returns its folder: the snapshot in the cache (the
 * layout of huggingface_hub, which Python programs share), or `localDir`. Files that are there already are not fetched
 * again; an interrupted download goes on where it stopped; every file is checked against the hub's checksum.
 * A commit that is complete on disk, and `offline`, send no request. Several processes may pull at once.
 *
 * @param id  "org/name"
 * @throws {NetworkError} the hub cannot be reached or refuses (`data.status`, `data.url`), or a file arrives damaged
 * @throws {IoError} offline and not complete on disk, or the disk refuses
 * @throws {OptionsError} wrong options or id
 */
export function pullModel(id: string, options: PullOptions = {}): Promise<string> {
  return pull({ kind: "model", id }, resolvePullOptions(options, "pullModel"), "pullModel");
}

/** Like {@link pullModel} for a data set; takes all its files unless told otherwise. */
export function pullDataset(id: string, options: PullOptions = {}): Promise<string> {
  return pull({ kind: "dataset", id }, resolvePullOptions(options, "pullDataset"), "pullDataset");
}

/**
 * The folder of a model given by a path or by its name on a hub: an existing folder is itself, "org/name" is pulled.
 * @throws {IoError} neither a folder nor a name such as "org/name"; else as {@link pullModel}
 */
export async function resolveModelFolder(idOrPath: string, options: PullOptions = {}): Promise<string> {
  const found = statSync(idOrPath, { throwIfNoEntry: false });
  if (found?.isDirectory()) return resolve(idOrPath);
  if (found === undefined && idPattern.test(idOrPath) && idOrPath.includes("/")) return pullModel(idOrPath, options);
  const what = found === undefined ? "which does not exist" : "which is a file";
  throw new IoError(
    `[resolveModelFolder] expected a folder or the name of a model on the hub ("org/name"), got ${JSON.stringify(idOrPath)}, ${what}`,
    { file: idOrPath },
  );
}

async function pull(repository: Repository, options: ResolvedPullOptions, where: string): Promise<string> {
  const { kind, id } = repository;
  if (!idPattern.test(id) || (options.source === "modelscope" && !id.includes("/"))) {
    throw new OptionsError(`[${where}] expected the name of a ${kind}, "org/name", got ${JSON.stringify(id)}`, { id });
  }
  const store =
    options.localDir === undefined
      ? openCache(repository, options)
      : openLocalFolder(repository, options.localDir, options);
  try {
    const known = await store.knownCommit(options.revision);
    if (options.offline) return await fromDisk(store, known, repository, options, where);
    // A commit never changes: once complete there is nothing to ask.
    if (known !== undefined && known === options.revision && isCommit(known)) {
      const listing = await store.readListing(known);
      const files = selectFiles(listing ?? [], kind, options);
      if (listing !== undefined && files.length > 0 && (await missing(store, known, files)).length === 0) {
        await store.finish(known, files, listing);
        return store.folder(known);
      }
    }
    return await fromHub(store, repository, options, where);
  } catch (error) {
    options.signal?.throwIfAborted();
    if (LlmError.isInstance(error) || (error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new IoError(
      `[${where}] cannot store ${id}: ${(error as Error).message}`,
      { id, file: (error as NodeJS.ErrnoException).path },
      error,
    );
  }
}

async function missing(store: Store, commit: string, files: readonly HubFile[]): Promise<HubFile[]> {
  const absent: HubFile[] = [];
  for (const file of files) if (!(await store.has(file, commit))) absent.push(file);
  return absent;
}

async function fromDisk(
  store: Store,
  commit: string | undefined,
  { kind, id }: Repository,
  options: ResolvedPullOptions,
  where: string,
): Promise<string> {
  const place = options.localDir ?? options.cacheDir;
  if (commit === undefined) {
    throw new IoError(
      `[${where}] offline, and ${kind} ${id} (revision ${options.revision}) is not in ${place}; pull it once with a network`,
      { id, file: place },
    );
  }
  const listing = await store.readListing(commit);
  const folder = store.folder(commit);
  const files = selectFiles(listing ?? [], kind, options);
  const gaps =
    listing === undefined ? await findGaps(folder) : (await missing(store, commit, files)).map(({ path }) => path);
  if (gaps.length > 0) {
    const some = `${gaps.slice(0, 5).join(", ")}${gaps.length > 5 ? ` and ${gaps.length - 5} more` : ""}`;
    throw new IoError(
      `[${where}] offline, and ${kind} ${id} (revision ${options.revision}) is incomplete in ${place}: ${some} missing; pull it once with a network`,
      { id, file: folder, missing: gaps },
    );
  }
  // Blobs may be there that an interrupted pull has not linked yet.
  if (listing !== undefined) await store.finish(commit, files, listing);
  return folder;
}

async function fromHub(
  store: Store,
  repository: Repository,
  options: ResolvedPullOptions,
  where: string,
): Promise<string> {
  const { kind, id } = repository;
  // The first failure stops the other downloads.
  const failed = new AbortController();
  const signal = options.signal === undefined ? failed.signal : AbortSignal.any([options.signal, failed.signal]);
  const remote = await openRemote(repository, { ...options, signal });
  const commit = await remote.resolveRevision();
  const listing = (await store.readListing(commit)) ?? (await remote.listFiles(commit));
  const files = selectFiles(listing, kind, options);
  if (files.length === 0) {
    const names = listing.slice(0, 10).map(({ path }) => path);
    throw new OptionsError(
      `[${where}] expected some of the ${listing.length} files of ${id} to match include and exclude, got none; it holds ${names.join(", ") || "nothing"}`,
      { id },
    );
  }

  const absent = await missing(store, commit, files);
  for (const file of files) {
    if (!absent.includes(file)) options.onProgress?.({ file: file.path, bytes: file.size, totalBytes: file.size });
  }
  if (absent.length === 0) {
    await store.finish(commit, files, listing);
    return store.folder(commit);
  }
  await withLock(store.lockPath, signal, async () => {
    // Files of equal content share one download; another process may have brought some while we waited.
    const queue = new Map(absent.map((file) => [store.incompletePath(file), file]));
    const jobs = [...queue];
    const worker = async (): Promise<void> => {
      for (let job = jobs.shift(); job !== undefined; job = jobs.shift()) {
        signal.throwIfAborted();
        const [path, file] = job;
        if (await store.has(file, commit)) continue;
        await downloadFile(remote.client, remote.fileUrl(commit, file.path), file, path, signal, options.onProgress);
        await store.accept(file, commit);
      }
    };
    const workers = Array.from({ length: Math.min(options.parallel, jobs.length) }, () =>
      worker().catch((error: unknown) => {
        failed.abort(error);
        throw error;
      }),
    );
    const results = await Promise.allSettled(workers);
    options.signal?.throwIfAborted();
    if (failed.signal.aborted) throw failed.signal.reason;
    for (const result of results) if (result.status === "rejected") throw result.reason;
    await store.finish(commit, files, listing);
  });
  return store.folder(commit);
}
