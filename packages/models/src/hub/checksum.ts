import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import type { HubFile } from "./remote.js";

/**
 * Compares a file on disk with what the hub says of it: the sha256 of its content, else git's name of it
 * (sha1 of "blob <size>\0" and the content), else nothing but the size, which the caller has compared.
 */
export async function matchesChecksum(
  path: string,
  file: HubFile,
  signal?: AbortSignal,
): Promise<{ ok: boolean; expected: string; actual: string; algorithm: string }> {
  const isGitName = /^[0-9a-f]{40}$/.test(file.blobId);
  if (file.sha256 === undefined && !isGitName) return { ok: true, expected: "", actual: "", algorithm: "none" };
  const algorithm = file.sha256 === undefined ? "git sha1" : "sha256";
  const hash = file.sha256 === undefined ? createHash("sha1").update(`blob ${file.size}\0`) : createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash, { signal });
  const actual = hash.digest("hex");
  const expected = file.sha256 ?? file.blobId;
  return { ok: actual === expected, expected, actual, algorithm };
}
