import { describe, expect, it } from "vitest";
import {
  chromeTrace,
  DeviceError,
  nativeDoctor,
  type ProfiledOp,
  startProfile,
  stopProfile,
  summarizeProfile,
} from "./index.js";

const records: ProfiledOp[] = [
  { op: "rms_norm", startUs: 0, durationUs: 10.5 },
  { op: "matmul", startUs: 12, durationUs: 60 },
  { op: "rms_norm", startUs: 73.25, durationUs: 9.5 },
  { op: "rope", startUs: 83, durationUs: 20 },
];

describe("a profile", () => {
  it("is summed by op, the longest first, with shares of the whole", () => {
    expect(summarizeProfile(records)).toEqual([
      { op: "matmul", calls: 1, totalUs: 60, share: 0.6 },
      { op: "rms_norm", calls: 2, totalUs: 20, share: 0.2 },
      { op: "rope", calls: 1, totalUs: 20, share: 0.2 },
    ]);
    expect(summarizeProfile([])).toEqual([]);
    expect(summarizeProfile([{ op: "fill", startUs: 0, durationUs: 0 }])).toEqual([
      { op: "fill", calls: 1, totalUs: 0, share: 0 },
    ]);
  });

  it("becomes a Chrome trace: one complete event a command, on one named thread, in microseconds", () => {
    const { traceEvents } = JSON.parse(chromeTrace(records)) as { traceEvents: Record<string, unknown>[] };
    const [thread, ...events] = traceEvents;
    expect(thread).toEqual({ name: "thread_name", ph: "M", pid: 1, tid: 1, args: { name: "gpu" } });
    expect(events.map(({ name, ts, dur }) => ({ op: name, startUs: ts, durationUs: dur }))).toEqual(records);
    for (const event of events) expect(event).toMatchObject({ ph: "X", pid: thread!["pid"], tid: thread!["tid"] });
  });

  it.skipIf(nativeDoctor().cuda)("needs an open GPU", () => {
    expect(startProfile).toThrow(DeviceError);
    expect(stopProfile).toThrow("[profile] no device is open");
  });
});
