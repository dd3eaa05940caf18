/** The time of each command on the GPU: recorded, summed by op, and written as a trace that browsers show. */
import { opNames } from "./gen/ops.js";
import { nativeProfile } from "./native.js";

/** One command's time on the GPU. */
export interface ProfiledOp {
  op: string;
  /** Microseconds since the profile started. */
  startUs: number;
  durationUs: number;
}

/** All commands of one op in a profile. */
export interface ProfileSummary {
  op: string;
  calls: number;
  totalUs: number;
  /** Part of the time of all commands, 0 to 1. */
  share: number;
}

/** A profile keeps this many commands; later ones are not in it. */
const mostRecords = 1 << 18;

/**
 * Starts to time every command on the GPU, by two events a command. A Plan that is replayed as a graph is one launch and leaves no
 * records. @throws {DeviceError} no GPU is open
 */
export function startProfile(): void {
  nativeProfile.set(true);
}

/** Ends the profile and returns its records in order. Waits for the GPU. @throws {DeviceError} no GPU is open */
export function stopProfile(): ProfiledOp[] {
  const records = new Float64Array(3 * mostRecords);
  const count = nativeProfile.read(records);
  nativeProfile.set(false);
  return Array.from({ length: count }, (_, i) => ({
    op: opNames[records[3 * i]!]!,
    startUs: records[3 * i + 1]!,
    durationUs: records[3 * i + 2]!,
  }));
}

/** Time and calls by op, the longest first; ops of equal time in order of appearance. */
export function summarizeProfile(records: readonly ProfiledOp[]): ProfileSummary[] {
  const byOp = new Map<string, ProfileSummary>();
  let total = 0;
  for (const { op, durationUs } of records) {
    let entry = byOp.get(op);
    if (!entry) byOp.set(op, (entry = { op, calls: 0, totalUs: 0, share: 0 }));
    entry.calls++;
    entry.totalUs += durationUs;
    total += durationUs;
  }
  for (const entry of byOp.values()) entry.share = total === 0 ? 0 : entry.totalUs / total;
  return [...byOp.values()].sort((a, b) => b.totalUs - a.totalUs);
}

/**
 * The records in Chrome's trace event format (JSON): one complete event a command, microseconds, on one thread "gpu". Open the file in
 * Perfetto or in chrome://tracing.
 */
export function chromeTrace(records: readonly ProfiledOp[]): string {
  const place = { pid: 1, tid: 1 };
  return JSON.stringify({
    displayTimeUnit: "ms",
    traceEvents: [
      { name: "thread_name", ph: "M", ...place, args: { name: "gpu" } },
      ...records.map(({ op, startUs, durationUs }) => ({
        name: op,
        cat: "op",
        ph: "X",
        ts: startUs,
        dur: durationUs,
        ...place,
      })),
    ],
  });
}
