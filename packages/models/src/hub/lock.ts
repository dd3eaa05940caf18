import { mkdir, open, rm, stat, utimes } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const beatMs = 5_000;
const deadAfterMs = 30_000;

/**
 * Runs `work` while no other process on this file system does so under the same lock. The holder touches the lock file every
 * 5 s; one that has not been touched for 30 s belongs to a process that died. Several ranks that start on one empty
 * cache download once.
 */
export async function withLock<T>(path: string, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
  await mkdir(dirname(path), { recursive: true });
  for (;;) {
    signal?.throwIfAborted();
    try {
      const file = await open(path, "wx");
      await file.writeFile(String(process.pid));
      await file.close();
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const touched = (await stat(path).catch(() => undefined))?.mtimeMs;
    if (touched !== undefined && Date.now() - touched > deadAfterMs) await rm(path, { force: true });
    else await sleep(200, undefined, { signal });
  }
  const beat = setInterval(() => {
    utimes(path, new Date(), new Date()).catch(() => undefined);
  }, beatMs).unref();
  try {
    return await work();
  } finally {
    clearInterval(beat);
    await rm(path, { force: true });
  }
}
