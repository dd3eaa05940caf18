import { randomBytes } from "node:crypto";
import {
  copyFile,
  lstat,
  mkdir,
  readFile,
  readdir,
  readlink,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { matchesChecksum } from "./checksum.js";
import type { ResolvedPullOptions } from "./options.js";
import { isCommit } from "./remote.js";
import type { HubFile, Repository } from "./remote.js";

/** Where pulled files live: the cache, or a plain folder. */
export interface Store {
  /** Taken while files are written. */
  readonly lockPath: string;
  /** The commit that a branch or tag meant when it was last pulled. */
  knownCommit(revision: string): Promise<string | undefined>;
  /** All files of a commit, if they have been listed before. */
  readListing(commit: string): Promise<HubFile[] | undefined>;
  /** The folder that a finished pull of this commit has. */
  folder(commit: string): string;
  /** True when the file's content is on disk. */
  has(file: HubFile, commit: string): Promise<boolean>;
  /** Where an unfinished download of the file lies. */
  incompletePath(file: HubFile): string;
  /** Takes a finished, checked download over. */
  accept(file: HubFile, commit: string): Promise<void>;
  /** Makes the folder whole and remembers the revision. */
  finish(commit: string, files: readonly HubFile[], listing: readonly HubFile[]): Promise<void>;
}

/** The name that a content has in the cache: what the hub sends as its ETag. */
export function objectName(file: HubFile): string {
  return file.sha256 ?? file.blobId;
}

async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.size;
}

async function readText(path: string): Promise<string | undefined> {
  return readFile(path, "utf8").catch(() => undefined);
}

/** Writes a small file whole or not at all; leaves one of the same content alone. */
async function writeText(path: string, text: string): Promise<void> {
  if ((await readText(path)) === text) return;
  await mkdir(dirname(path), { recursive: true });
  const temporary = `${path}.${randomBytes(4).toString("hex")}.tmp`;
  await writeFile(temporary, text);
  await rename(temporary, path);
}

/**
 * Listings in the form of huggingface_hub's tree cache. It takes `<commit>.json` to mean that the whole repository should
 * be there, so a partial pull goes by another name.
 * @see huggingface_hub/_tree_cache.py
 */
function listings(folder: string) {
  const path = (commit: string, whole: boolean): string =>
    join(folder, "trees", `${commit}${whole ? "" : ".partial"}.json`);
  return {
    async read(commit: string): Promise<HubFile[] | undefined> {
      const text = (await readText(path(commit, true))) ?? (await readText(path(commit, false)));
      try {
        const { format_version: version, files } = JSON.parse(text ?? "null") as {
          format_version: number;
          files: Record<string, { size: number; blob_id: string; lfs_sha256?: string; lfs_size?: number }>;
        };
        if (version !== 1) return undefined;
        return Object.entries(files).map(
          ([name, { size, blob_id: blobId, lfs_sha256: sha256, lfs_size: lfsSize }]) => ({
            path: name,
            size: lfsSize ?? size,
            blobId,
            ...(sha256 === undefined ? {} : { sha256 }),
          }),
        );
      } catch {
        return undefined; // absent, or of another version: the hub is asked again
      }
    },
    async write(commit: string, listing: readonly HubFile[], whole: boolean): Promise<void> {
      const files = Object.fromEntries(
        [...listing]
          .sort((a, b) => (a.path < b.path ? -1 : 1))
          .map(({ path: name, size, blobId, sha256 }) => [
            name,
            { size, blob_id: blobId, ...(sha256 === undefined ? {} : { lfs_sha256: sha256, lfs_size: size }) },
          ]),
      );
      await writeText(path(commit, whole), JSON.stringify({ format_version: 1, files }, undefined, 1));
      if (whole) await rm(path(commit, false), { force: true });
    },
  };
}

/**
 * The layout of huggingface_hub: `models--org--name/{blobs,refs,snapshots}`, snapshots made of relative links to blobs.
 * @see https://huggingface.co/docs/huggingface_hub/guides/manage-cache
 */
export function openCache({ kind, id }: Repository, { cacheDir, source, revision }: ResolvedPullOptions): Store {
  const name = [`${source === "modelscope" ? "modelscope--" : ""}${kind}s`, ...id.split("/")].join("--");
  const root = join(cacheDir, name);
  const trees = listings(root);
  const folder = (commit: string): string => join(root, "snapshots", commit);
  const blob = (file: HubFile): string => join(root, "blobs", objectName(file));
  const has = async (file: HubFile, commit: string): Promise<boolean> =>
    (await sizeOf(blob(file))) === file.size || (await sizeOf(join(folder(commit), file.path))) === file.size;

  async function link(file: HubFile, commit: string): Promise<void> {
    const path = join(folder(commit), file.path);
    const target = relative(dirname(path), blob(file));
    const present = await lstat(path).catch(() => undefined);
    if (present?.isSymbolicLink() && (await readlink(path)) === target) return;
    if (present?.isFile() && present.size === file.size && (await sizeOf(blob(file))) === undefined) return;
    await mkdir(dirname(path), { recursive: true });
    const temporary = `${path}.${randomBytes(4).toString("hex")}.tmp`;
    try {
      await symlink(target, temporary);
    } catch (error) {
      // A file system without links gets a copy, as in huggingface_hub.
      if (!["EPERM", "ENOTSUP", "ENOSYS", "EOPNOTSUPP"].includes((error as NodeJS.ErrnoException).code ?? ""))
        throw error;
      await copyFile(blob(file), temporary);
    }
    await rename(temporary, path);
  }

  return {
    lockPath: join(cacheDir, ".locks", name, "pull.lock"),
    folder,
    has,
    readListing: trees.read,
    incompletePath: (file) => `${blob(file)}.incomplete`,
    accept: (file) => rename(`${blob(file)}.incomplete`, blob(file)),
    async knownCommit(wanted) {
      if (source === "huggingface" && isCommit(wanted)) return wanted;
      const commit = (await readText(join(root, "refs", wanted)))?.trim();
      return commit !== undefined && isCommit(commit) ? commit : undefined;
    },
    async finish(commit, files, listing) {
      for (const file of files) await link(file, commit);
      const all = await Promise.all(
        listing.map(async (file) => (await sizeOf(join(folder(commit), file.path))) === file.size),
      );
      await trees.write(commit, listing, all.every(Boolean));
      if (revision !== commit) await writeText(join(root, "refs", revision), commit);
    },
  };
}

/**
 * A plain folder, with the bookkeeping of huggingface_hub's `local_dir` in `.cache/huggingface`: for each file the commit,
 * the object's name and when that was known to be true.
 * @see huggingface_hub/_local_folder.py
 */
export function openLocalFolder(
  { kind, id }: Repository,
  localDir: string,
  { source, revision }: ResolvedPullOptions,
): Store {
  const bookkeeping = join(localDir, ".cache", "huggingface");
  const trees = listings(bookkeeping);
  const statePath = join(bookkeeping, "pull.json");
  const path = (file: HubFile): string => join(localDir, file.path);
  const metadataPath = (file: HubFile): string => join(bookkeeping, "download", `${file.path}.metadata`);
  const incompletePath = (file: HubFile): string =>
    join(bookkeeping, "download", `${file.path}.${objectName(file)}.incomplete`);
  const note = async (file: HubFile, commit: string): Promise<void> => {
    await writeText(metadataPath(file), `${commit}\n${objectName(file)}\n${Date.now() / 1000}\n`);
  };

  return {
    lockPath: join(bookkeeping, "pull.lock"),
    folder: () => localDir,
    readListing: trees.read,
    incompletePath,
    async knownCommit(wanted) {
      const state = JSON.parse((await readText(statePath)) ?? "{}") as Record<string, string>;
      const same = state["source"] === source && state["kind"] === kind && state["id"] === id;
      return same && (state["revision"] === wanted || state["commit"] === wanted) ? state["commit"] : undefined;
    },
    async has(file, commit) {
      const present = await stat(path(file)).catch(() => undefined);
      if (present?.size !== file.size) return false;
      const [, name, seconds] = ((await readText(metadataPath(file))) ?? "").split("\n");
      const unchanged = present.mtimeMs / 1000 - 1 <= Number(seconds);
      if (unchanged && name === objectName(file)) return true;
      if (!(await matchesChecksum(path(file), file)).ok) return false;
      await note(file, commit);
      return true;
    },
    async accept(file, commit) {
      await mkdir(dirname(path(file)), { recursive: true });
      await rename(incompletePath(file), path(file));
      await note(file, commit);
    },
    async finish(commit, files, listing) {
      const names = new Set(files.map((file) => file.path));
      await trees.write(
        commit,
        listing,
        listing.every((file) => names.has(file.path)),
      );
      await writeText(join(bookkeeping, ".gitignore"), "*");
      await writeText(statePath, JSON.stringify({ source, kind, id, revision, commit }));
    },
  };
}

/** For a snapshot whose listing is unknown (made by another program): what is plainly missing from it. */
export async function findGaps(folder: string): Promise<string[]> {
  const names = (await readdir(folder, { recursive: true }).catch(() => undefined)) ?? [];
  if (names.length === 0) return ["everything"];
  const gaps: string[] = [];
  for (const name of names) {
    if ((await sizeOf(join(folder, name))) === undefined) gaps.push(name);
    if (!name.endsWith(".safetensors.index.json")) continue;
    const { weight_map: map } = JSON.parse((await readText(join(folder, name))) ?? "{}") as {
      weight_map?: Record<string, string>;
    };
    for (const shard of new Set(Object.values(map ?? {}))) {
      const beside = join(dirname(name), shard);
      if ((await sizeOf(join(folder, beside))) === undefined) gaps.push(beside);
    }
  }
  return [...new Set(gaps)];
}
