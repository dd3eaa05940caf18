import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createColors } from "picocolors";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { llm, records, startLlm } from "../test/run-llm.js";
import { topTable } from "./commands/top.js";
import { parseGpus, parseProcesses } from "./nvidia-smi.js";

const gib = 2 ** 30;
const h200 = "0, GPU-aaaa, NVIDIA H200, 14336, 143360, 97, 511.83, 700.00, 61, 1755, 1980, 3201";
const old = "1, GPU-bbbb, Quadro K620, 100, 2048, [N/A], [Not Supported], [N/A], 40, 405, 1124, 900";
const processes =
  "GPU-aaaa, 77, python, 1024\nGPU-aaaa, 4242, /opt/a, b/node, 12288\nGPU-bbbb, 9, [Not Found], [N/A]\n";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "llm-top-"));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

/** Puts an nvidia-smi of our own first on PATH: prints these texts, or runs `script`. */
function fake(gpus: string, apps: string, script = ""): void {
  writeFileSync(join(folder, "gpus"), gpus);
  writeFileSync(join(folder, "apps"), apps);
  const text = `#!/bin/sh
echo "$@" >> '${folder}/asked'
${script}
case "$1" in
  --query-gpu=*) cat '${folder}/gpus';;
  --query-compute-apps=*) cat '${folder}/apps';;
  *) exit 2;;
esac
`;
  writeFileSync(join(folder, "nvidia-smi"), text);
  chmodSync(join(folder, "nvidia-smi"), 0o755);
  vi.stubEnv("PATH", `${folder}:${process.env["PATH"] ?? ""}`);
}

/** Runs `body` as if stdout were a terminal. */
async function atTerminal(body: () => Promise<void>): Promise<void> {
  const before = Object.getOwnPropertyDescriptor(process.stdout, "isTTY");
  Object.defineProperty(process.stdout, "isTTY", { value: true, configurable: true });
  vi.stubEnv("NO_COLOR", "1");
  try {
    await body();
  } finally {
    if (before) Object.defineProperty(process.stdout, "isTTY", before);
    else delete (process.stdout as { isTTY?: boolean }).isTTY;
  }
}

describe("nvidia-smi's lines", () => {
  test("numbers, and null for what is not told", () => {
    expect(parseGpus(`${h200}\n${old}\n`)).toEqual([
      {
        index: 0,
        uuid: "GPU-aaaa",
        name: "NVIDIA H200",
        memoryUsedBytes: 14 * gib,
        memoryTotalBytes: 140 * gib,
        utilizationPercent: 97,
        powerWatts: 511.83,
        powerLimitWatts: 700,
        temperatureC: 61,
        clockMHz: 1755,
        clockMaxMHz: 1980,
        memoryClockMHz: 3201,
        processes: [],
      },
      expect.objectContaining({ index: 1, utilizationPercent: null, powerWatts: null, powerLimitWatts: null }),
    ]);
    expect(parseProcesses(processes)).toEqual([
      { gpuUuid: "GPU-aaaa", pid: 77, name: "python", memoryUsedBytes: gib },
      { gpuUuid: "GPU-aaaa", pid: 4242, name: "/opt/a, b/node", memoryUsedBytes: 12 * gib },
      { gpuUuid: "GPU-bbbb", pid: 9, name: "[Not Found]", memoryUsedBytes: null },
    ]);
    expect(parseProcesses("\n")).toEqual([]);
  });

  test.each([
    [() => parseGpus("0, GPU-aaaa, NVIDIA H200, 14336"), "expected 12 fields"],
    [() => parseGpus(h200.replace("97", "97 %")), "expected a number for utilization.gpu"],
    [() => parseGpus(h200.replace("0,", "x,")), "expected an integer for index"],
    [() => parseProcesses("GPU-aaaa, 77"), "expected 4 fields"],
    [() => parseProcesses("GPU-aaaa, p, python, 1"), "expected an integer for pid"],
  ])("another form is refused %#", (parse, message) => {
    expect(parse).toThrow(message);
  });
});

test("the table: a line a card, its processes by memory, – for what is unknown", () => {
  const gpus = parseGpus(`${h200}\n${old}`);
  for (const { gpuUuid, ...one } of parseProcesses(processes))
    gpus.find(({ uuid }) => uuid === gpuUuid)!.processes.push(one);
  expect(topTable(gpus, createColors(false)).split("\n")).toEqual([
    "gpu  name         memory                         use   power        temp   clock            memory clock",
    "0    NVIDIA H200  █░░░░░░░░░░░ 15.0 GB / 150 GB  97 %  512 / 700 W  61 °C  1755 / 1980 MHz  3201 MHz",
    "     4242  12.9 GB  /opt/a, b/node",
    "       77   1.1 GB  python",
    "1    Quadro K620  █░░░░░░░░░░░ 105 MB / 2.1 GB   – %   – / – W      40 °C  405 / 1124 MHz   900 MHz",
    "     9        –  [Not Found]",
  ]);
});

describe("llm top", () => {
  test("--once in a pipe is one JSON line; on a terminal a table, with --json a line again", async () => {
    fake(`${old}\n${h200}\n`, processes);
    const piped = await llm("top", "--once");
    expect(piped).toMatchObject({ code: 0, stderr: "" });
    expect(records(piped.stdout)).toMatchObject([
      {
        type: "gpus",
        time: expect.stringMatching(/^\d{4}-.*Z$/),
        gpus: [
          { index: 0, processes: [{ pid: 77 }, { pid: 4242, memoryUsedBytes: 12 * gib }] },
          { index: 1, processes: [{ pid: 9, memoryUsedBytes: null }] },
        ],
      },
    ]);
    await atTerminal(async () => {
      const table = await llm("top", "--once");
      expect(table.code).toBe(0);
      expect(table.stdout).toMatch(/^gpu {2}name .*\n0 {4}NVIDIA H200 /);
      expect(table.stdout).not.toContain("\u001b");
      expect(records((await llm("top", "--once", "--json")).stdout)).toHaveLength(1);
    });
  });

  test("the table is drawn every second until Ctrl-C, which leaves the terminal as it was, code 0", async () => {
    fake(h200, "");
    await atTerminal(async () => {
      const running = startLlm("top");
      const drawn = (): number => running.written.stdout.split("\u001b[H\u001b[J").length - 1;
      await vi.waitFor(() => expect(drawn()).toBe(1), { timeout: 10_000 });
      const first = performance.now();
      writeFileSync(join(folder, "gpus"), h200.replace("97", "12"));
      await vi.waitFor(() => expect(drawn()).toBe(2), { timeout: 10_000 });
      expect(performance.now() - first).toBeGreaterThan(500);
      running.interrupt();
      const { code, stdout, stderr } = await running.finished;
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      expect(stdout.startsWith("\u001b[?1049h\u001b[?25l")).toBe(true);
      expect(stdout.endsWith("\u001b[?25h\u001b[?1049l")).toBe(true);
      expect(stdout).toContain("97 %");
      expect(stdout).toContain("12 %");
    });
  });

  test("Ctrl-C while nvidia-smi runs ends at once", async () => {
    fake(h200, "", "exec sleep 30");
    const running = startLlm("top");
    await new Promise((resolve) => setTimeout(resolve, 200));
    const began = performance.now();
    running.interrupt();
    expect(await running.finished).toMatchObject({ code: 0, stdout: "", stderr: "" });
    expect(performance.now() - began).toBeLessThan(5000);
  });

  test("without nvidia-smi it says where it looked", async () => {
    vi.stubEnv("PATH", folder);
    const { code, stderr } = await llm("top", "--once");
    expect(code).toBe(1);
    expect(stderr).toMatch(/^error \[llm top\] expected nvidia-smi, .*looked for it in /);
    expect(stderr).toContain(folder);
  });

  test.each([
    [
      "no driver",
      "",
      "",
      "echo 'NVIDIA-SMI has failed because it has no driver'; exit 9",
      "failed: NVIDIA-SMI has failed",
    ],
    ["no card", "No devices were found\n", "", "", "No devices were found"],
    ["another form", "0, GPU-aaaa\n", "", "", "expected 12 fields"],
    ["a process on no card", h200, "GPU-zzzz, 1, x, 1\n", "", "which is none of the cards"],
  ])("%s is one message, code 1", async (_, gpus, apps, script, message) => {
    fake(gpus, apps, script);
    const { code, stdout, stderr } = await llm("top", "--once");
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toContain(message);
    expect(stderr.split("\n")).toHaveLength(2);
  });
});
