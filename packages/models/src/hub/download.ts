import { mkdir, open, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { LlmError, NetworkError } from "@llm/core";
import { matchesChecksum } from "./checksum.js";
import type { HubClient } from "./http.js";
import { withoutQuery } from "./http.js";
import type { PullProgress } from "./options.js";
import type { HubFile } from "./remote.js";

/**
 * Brings a file to `path`, continuing what is there already (`Range`), and checks it.
 * A file that was continued and turns out wrong is fetched once more from its beginning.
 * @throws {NetworkError} the checksum differs (the file is removed; `data.expected`, `data.actual`), or the hub refuses
 */
export async function downloadFile(
  client: HubClient,
  url: string,
  file: HubFile,
  path: string,
  signal: AbortSignal | undefined,
  onProgress: ((progress: PullProgress) => void) | undefined,
): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const found = (await stat(path).catch(() => undefined))?.size ?? 0;
  for (let continued = found > 0; ; continued = false) {
    await client.withRetries((progressed) =>
      fetchRest(client, url, file, path, (bytes) => {
        if (bytes > 0) progressed();
        onProgress?.({ file: file.path, bytes, totalBytes: file.size });
      }),
    );
    const { ok, expected, actual, algorithm } = await matchesChecksum(path, file, signal);
    if (ok) return;
    await rm(path, { force: true });
    if (continued) continue;
    throw new NetworkError(
      `[pull] ${file.path} from ${withoutQuery(url)} arrived damaged and was removed: expected ${algorithm} ${expected}, got ${actual}`,
      { file: file.path, url: withoutQuery(url), expected, actual },
    );
  }
}

/** One attempt: from the end of what is on disk to the end of the file. */
async function fetchRest(
  client: HubClient,
  url: string,
  file: HubFile,
  path: string,
  onBytes: (bytes: number) => void,
): Promise<void> {
  const disk = await open(path, "a");
  let finish: (() => void) | undefined;
  const fail = (what: string, retryable: boolean): NetworkError =>
    new NetworkError(`[pull] ${file.path} from ${withoutQuery(url)} ${what}`, {
      file: file.path,
      url: withoutQuery(url),
      retryable,
    });
  try {
    let at = (await disk.stat()).size;
    const restart = async (): Promise<void> => {
      await disk.truncate(0);
      at = 0;
    };
    if (at > file.size) await restart();
    if (at > 0) onBytes(at);
    if (at < file.size) {
      const range: Record<string, string> = at === 0 ? {} : { range: `bytes=${at}-` };
      let answer: Awaited<ReturnType<HubClient["open"]>>;
      try {
        answer = await client.open(url, { "accept-encoding": "identity", ...range });
      } catch (error) {
        if (!LlmError.isInstance(error) || error.data["status"] !== 416) throw error;
        await restart();
        throw fail("cannot be continued, starting again", true);
      }
      const { response, done, guard } = answer;
      finish = done;
      if (response.status === 206 && !response.headers.get("content-range")?.startsWith(`bytes ${at}-`)) {
        await restart();
        throw fail(
          `answered with ${response.headers.get("content-range") ?? "no content-range"}, starting again`,
          true,
        );
      }
      if (response.status !== 206) await restart();
      const reader = response.body!.getReader();
      for (;;) {
        let part: { done: boolean; value?: Uint8Array };
        try {
          part = await guard(reader.read());
        } catch (error) {
          throw client.broken(url, error);
        }
        if (part.done || part.value === undefined) break;
        if (at + part.value.length > file.size) {
          await restart();
          throw fail(`is longer than the ${file.size} bytes that its listing says`, false);
        }
        for (let sent = 0; sent < part.value.length;) sent += (await disk.write(part.value, sent)).bytesWritten;
        at += part.value.length;
        onBytes(at);
      }
    }
    if (at < file.size) throw fail(`ended at byte ${at} of ${file.size}`, true);
    await disk.sync();
    if (file.size === 0) onBytes(0);
  } finally {
    finish?.();
    await disk.close();
  }
}
