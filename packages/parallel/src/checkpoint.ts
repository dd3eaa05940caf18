/**
 * Checkpoints of a run: `step-N/` with weights.safetensors (the trained tensors), optimizer.safetensors and state.json. A checkpoint is
 * written under a temporary name and renamed, so a folder called step-N is whole.
 */
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import {
  FormatError,
  IoError,
  type NamedTensor,
  openSafetensors,
  OptionsError,
  type Optimizer,
  type SafetensorsSource,
  toSafetensorsDType,
  writeSafetensors,
} from "@llm/core";
import * as v from "valibot";

const whole = v.pipe(v.number(), v.integer(), v.minValue(0));
const fact = v.nullable(v.union([v.string(), v.number(), v.boolean(), v.array(v.union([v.string(), v.number()]))]));

const RunState = v.strictObject({
  version: v.literal(1),
  /** Steps done, skipped ones included. */
  step: whole,
  /** Updates done. */
  optimizerSteps: whole,
  /** Batches of the data consumed. */
  batches: whole,
  totalSteps: whole,
  /** What must not change for the resumed run to be the uninterrupted one. */
  exact: v.record(v.string(), fact),
});
export type RunState = v.InferOutput<typeof RunState>;

const pattern = /^step-(\d+)$/;
const temporary = ".tmp-step-";
/** Before the name of a checkpoint that another of the same step is taking the place of. */
const replaced = ".old-";

/** Checkpoint folders by rising step. */
export async function listCheckpoints(folder: string): Promise<string[]> {
  if (!existsSync(folder)) return [];
  const names = (await readdir(folder)).filter((name) => pattern.test(name));
  const step = (name: string): number => Number(pattern.exec(name)![1]);
  return names.sort((a, b) => step(a) - step(b)).map((name) => join(folder, name));
}

/** Removes what writes that were cut off have left, and puts back a checkpoint that one was about to replace. */
export async function removeUnfinished(folder: string): Promise<void> {
  if (!existsSync(folder)) return;
  for (const name of await readdir(folder)) {
    const path = join(folder, name);
    const target = join(folder, name.slice(replaced.length));
    if (name.startsWith(replaced) && !existsSync(target)) await rename(path, target);
    else if (name.startsWith(replaced) || name.startsWith(temporary)) await rm(path, { recursive: true, force: true });
  }
}

const source = ({ name, tensor }: NamedTensor): SafetensorsSource => ({
  name,
  dtype: toSafetensorsDType(tensor.dtype)!,
  shape: tensor.shape,
  byteLength: tensor.bytes,
  bytes: () => {
    const bits = tensor.bitsSync();
    return new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength);
  },
});

/** Makes a rename inside the folder last. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Writes `step-N` and removes older checkpoints beyond the newest `keep`.
 * @returns its path
 * @throws {IoError} the disk refuses; earlier checkpoints stay as they are
 */
export async function saveCheckpoint(
  folder: string,
  parameters: readonly NamedTensor[],
  optimizer: Optimizer,
  state: RunState,
  keep: number,
): Promise<string> {
  const target = join(folder, `step-${state.step}`);
  const draft = join(folder, `${temporary}${state.step}-${randomBytes(4).toString("hex")}`);
  try {
    await mkdir(draft, { recursive: true });
    const whole = { maxShardBytes: Number.MAX_SAFE_INTEGER };
    await writeSafetensors(draft, parameters.map(source), { ...whole, baseName: "weights" });
    await writeSafetensors(draft, optimizer.state().map(source), { ...whole, baseName: "optimizer" });
    const file = await open(join(draft, "state.json"), "w");
    try {
      await file.writeFile(`${JSON.stringify(state, null, 2)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    // A step that is run again after resuming from an older one replaces its folder.
    if (existsSync(target)) {
      const old = join(folder, `${replaced}${basename(target)}`);
      await rename(target, old);
      await rename(draft, target);
      await rm(old, { recursive: true, force: true });
    } else await rename(draft, target);
    await syncFolder(folder);
  } catch (error) {
    await rm(draft, { recursive: true, force: true });
    throw new IoError(
      `[train] cannot write the checkpoint ${target}: ${(error as Error).message}`,
      { file: target },
      error,
    );
  }
  const all = await listCheckpoints(folder);
  for (const old of all.slice(0, Math.max(0, all.length - keep)))
    if (old !== target) await rm(old, { recursive: true, force: true });
  return target;
}

/** state.json of a checkpoint. @throws {FormatError | IoError} */
export function readRunState(checkpoint: string): RunState {
  const file = join(checkpoint, "state.json");
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new IoError(
      `[train] expected a checkpoint folder step-N with state.json, cannot read ${file}: ${(error as Error).message}`,
      { file },
      error,
    );
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new FormatError(`[train] ${file} is not valid JSON: ${(error as Error).message}`, { file }, error);
  }
  const result = v.safeParse(RunState, parsed);
  if (!result.success) {
    const issue = result.issues[0];
    throw new FormatError(`[train] ${file}: ${v.getDotPath(issue) ?? "content"}: ${issue.message}`, { file });
  }
  return result.output;
}

/** @throws {OptionsError} naming each option that differs */
export function checkExact(checkpoint: string, before: RunState["exact"], now: RunState["exact"]): void {
  const keys = [...new Set([...Object.keys(before), ...Object.keys(now)])];
  const text = (value: unknown): string => (value === undefined || value === null ? "none" : JSON.stringify(value));
  const differing = keys.filter((key) => text(before[key]) !== text(now[key]));
  if (differing.length === 0) return;
  const list = differing.map((key) => `${key} (was ${text(before[key])}, is ${text(now[key])})`).join(", ");
  throw new OptionsError(
    `[train] resuming ${basename(checkpoint)} would not continue the run that wrote it, because these differ: ${list}. Use checkpoint.force to resume anyway`,
    { differing },
  );
}

/** Checks a file against the tensors that it is for. @returns reads them in place @throws {FormatError} missing, left over, or of another form */
function openTensors(file: string, tensors: readonly NamedTensor[]): { restore(): void; close(): void } {
  const handle = openSafetensors(file);
  const fail = (name: string, message: string): never => {
    handle.close();
    throw new FormatError(`[train] ${file}: ${message}`, { file, name });
  };
  const left = new Set(handle.tensors.keys());
  for (const { name, tensor } of tensors) {
    const entry = handle.tensors.get(name);
    const expected = `${toSafetensorsDType(tensor.dtype)} [${tensor.shape.join(", ")}]`;
    const got = entry ? `${entry.dtype} [${entry.shape.join(", ")}]` : "no such tensor";
    if (expected !== got) fail(name, `${name}: expected ${expected}, got ${got}`);
    left.delete(name);
  }
  const [odd] = left;
  if (odd !== undefined) fail(odd, `it holds ${odd}, which this run does not train`);
  return {
    restore: () => {
      for (const { name, tensor } of tensors) tensor.write(handle.read(name));
    },
    close: () => handle.close(),
  };
}

/**
 * Puts weights and optimizer back; nothing is changed when a file's header is broken or of another model.
 * @throws {FormatError | IoError}
 */
export function restoreCheckpoint(
  checkpoint: string,
  parameters: readonly NamedTensor[],
  optimizer: Optimizer,
  state: RunState,
): void {
  const weights = openTensors(join(checkpoint, "weights.safetensors"), parameters);
  try {
    const moments = openTensors(join(checkpoint, "optimizer.safetensors"), optimizer.state());
    try {
      weights.restore();
      moments.restore();
    } finally {
      moments.close();
    }
  } finally {
    weights.close();
  }
  optimizer.restore(state.optimizerSteps);
}
