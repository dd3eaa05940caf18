/** The state of NVIDIA cards and of the processes on them, as nvidia-smi tells it. */
import { execFile } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { DeviceError, FormatError } from "@llm/core";

export interface GpuProcess {
  pid: number;
  name: string;
  /** null: not told to this user or in this container. */
  memoryUsedBytes: number | null;
}

/** One card; null: the card does not have it, or it is not told to this user. */
export interface GpuState {
  index: number;
  uuid: string;
  name: string;
  memoryUsedBytes: number | null;
  memoryTotalBytes: number | null;
  /** Share of the last second in which a kernel ran. */
  utilizationPercent: number | null;
  powerWatts: number | null;
  powerLimitWatts: number | null;
  temperatureC: number | null;
  /** Clock of the multiprocessors, now and at most; and of the memory. */
  clockMHz: number | null;
  clockMaxMHz: number | null;
  memoryClockMHz: number | null;
  processes: GpuProcess[];
}

const gpuFields =
  "index,uuid,name,memory.used,memory.total,utilization.gpu,power.draw,power.limit,temperature.gpu,clocks.sm,clocks.max.sm,clocks.mem";
const processFields = "gpu_uuid,pid,process_name,used_memory";
const format = "--format=csv,noheader,nounits";
const timeoutMs = 10_000;
const where = "[llm top]";
/** Where the Windows Subsystem for Linux keeps it. */
const extraFolders = ["/usr/lib/wsl/lib"];

/**
 * The path of nvidia-smi.
 * @throws {DeviceError} it is in no folder of PATH
 */
export function findNvidiaSmi(path: string = process.env["PATH"] ?? ""): string {
  const folders = [...path.split(delimiter).filter((folder) => folder !== ""), ...extraFolders];
  for (const folder of folders) {
    const file = join(folder, "nvidia-smi");
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // The next one.
    }
  }
  throw new DeviceError(
    `${where} expected nvidia-smi, which comes with NVIDIA's driver; looked for it in ${folders.join(", ")}`,
    { folders },
  );
}

const unknown = /^\[?(N\/A|Not Supported|Not Found|Unknown Error|Insufficient Permissions|GPU access blocked.*)\]?$/i;

function numberOf(text: string, what: string, line: string): number | null {
  if (unknown.test(text)) return null;
  if (!/^-?\d+(\.\d+)?$/.test(text))
    throw new FormatError(
      `${where} nvidia-smi: expected a number for ${what}, got ${JSON.stringify(text)} in "${line}"`,
    );
  return Number(text);
}

function integerOf(text: string, what: string, line: string): number {
  if (!/^\d+$/.test(text))
    throw new FormatError(
      `${where} nvidia-smi: expected an integer for ${what}, got ${JSON.stringify(text)} in "${line}"`,
    );
  return Number(text);
}

const bytesOf = (mebibytes: number | null): number | null => (mebibytes === null ? null : mebibytes * 2 ** 20);

const linesOf = (text: string): string[] =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");

/**
 * Cards of `--query-gpu`'s lines.
 * @throws {FormatError} a line of another form
 */
export function parseGpus(text: string): GpuState[] {
  const names = gpuFields.split(",");
  return linesOf(text).map((line) => {
    const fields = line.split(",").map((field) => field.trim());
    if (fields.length !== names.length)
      throw new FormatError(
        `${where} nvidia-smi: expected ${names.length} fields (${gpuFields}), got ${fields.length} in "${line}"`,
      );
    const at = (name: string): string => fields[names.indexOf(name)]!;
    const value = (name: string): number | null => numberOf(at(name), name, line);
    return {
      index: integerOf(at("index"), "index", line),
      uuid: at("uuid"),
      name: at("name"),
      memoryUsedBytes: bytesOf(value("memory.used")),
      memoryTotalBytes: bytesOf(value("memory.total")),
      utilizationPercent: value("utilization.gpu"),
      powerWatts: value("power.draw"),
      powerLimitWatts: value("power.limit"),
      temperatureC: value("temperature.gpu"),
      clockMHz: value("clocks.sm"),
      clockMaxMHz: value("clocks.max.sm"),
      memoryClockMHz: value("clocks.mem"),
      processes: [],
    };
  });
}

/**
 * Processes of `--query-compute-apps`' lines. A program's name may hold commas.
 * @throws {FormatError} a line of another form
 */
export function parseProcesses(text: string): (GpuProcess & { gpuUuid: string })[] {
  return linesOf(text).map((line) => {
    const match = /^([^,]+),\s*([^,]+),\s*(.*),\s*([^,]+)$/.exec(line);
    if (!match) throw new FormatError(`${where} nvidia-smi: expected 4 fields (${processFields}), got "${line}"`);
    const [, gpuUuid, pid, name, memory] = match as unknown as [string, string, string, string, string];
    return {
      gpuUuid: gpuUuid.trim(),
      pid: integerOf(pid.trim(), "pid", line),
      name: name.trim(),
      memoryUsedBytes: bytesOf(numberOf(memory.trim(), "used_memory", line)),
    };
  });
}

/** What nvidia-smi prints. @throws {DeviceError} it fails, or takes too long */
function ask(program: string, query: string, signal: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(program, [query, format], { signal, timeout: timeoutMs, encoding: "utf8" }, (error, stdout, stderr) => {
      if (error === null) return resolve(stdout);
      if (signal.aborted) return reject(signal.reason as Error);
      const said = linesOf(`${stdout}\n${stderr}`)[0];
      const why = error.killed ? `no answer in ${timeoutMs / 1000} s` : (said ?? error.message);
      reject(
        new DeviceError(`${where} ${program} failed: ${why}`, { program, query, code: error.code ?? null }, error),
      );
    });
  });
}

/**
 * All cards with the processes on them, by index.
 * @throws {DeviceError} nvidia-smi fails, as it does without a driver or a card
 * @throws {FormatError} it prints something else than what it was asked for
 */
export async function readGpus(program: string, signal: AbortSignal): Promise<GpuState[]> {
  const [gpuText, processText] = await Promise.all([
    ask(program, `--query-gpu=${gpuFields}`, signal),
    ask(program, `--query-compute-apps=${processFields}`, signal),
  ]);
  if (/^No devices were found/i.test(gpuText.trim()))
    throw new DeviceError(`${where} ${program} failed: ${gpuText.trim()}`, { program });
  const gpus = parseGpus(gpuText);
  for (const { gpuUuid, ...one } of parseProcesses(processText)) {
    const gpu = gpus.find(({ uuid }) => uuid === gpuUuid);
    if (!gpu)
      throw new FormatError(`${where} nvidia-smi: process ${one.pid} is on ${gpuUuid}, which is none of the cards`, {
        gpuUuid,
      });
    gpu.processes.push(one);
  }
  return gpus.sort((a, b) => a.index - b.index);
}
