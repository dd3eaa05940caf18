/** Opens what a command line calls a model: a folder, a hub name, or a PEFT folder, whose base is loaded first. */
import { existsSync, readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { FormatError, OptionsError, setDefaultDevice } from "@llm/core";
import { loadLora } from "@llm/lora";
import { type CausalLM, loadModel, type LoadModelOptions } from "@llm/models";

/** Whether a folder holds an adapter and not a model. */
export function isAdapterFolder(folder: string): boolean {
  return existsSync(join(folder, "adapter_config.json")) && !existsSync(join(folder, "config.json"));
}

/** The base model that a PEFT folder names. @throws {FormatError} it names none */
function baseOf(folder: string): string {
  const file = join(folder, "adapter_config.json");
  let base: unknown;
  try {
    base = (JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>)["base_model_name_or_path"];
  } catch (error) {
    throw new FormatError(`[llm] ${file} is not valid JSON: ${(error as Error).message}`, { file }, error);
  }
  if (typeof base === "string" && base !== "") return base;
  throw new FormatError(
    `[llm] ${file} names no base_model_name_or_path; give the base model, and the adapter with --adapter`,
    { file },
  );
}

/**
 * A device that is named (`--device`) is that of everything the command makes from here on, not of the weights alone.
 * @param adapter  PEFT folder to attach
 * @throws {LlmError} nothing there, or nothing that can be loaded
 * @throws {DeviceError} a device that cannot be used
 */
export async function openModel(name: string, options: LoadModelOptions, adapter?: string): Promise<CausalLM> {
  if (options.device !== undefined && options.device !== "auto") setDefaultDevice(options.device);
  if (!isAdapterFolder(name)) {
    const model = await loadModel(name, options);
    return adapter === undefined ? model : loadLora(model, adapter);
  }
  if (adapter !== undefined)
    throw new OptionsError(
      `[llm] ${name} is an adapter already; give its base model with --adapter ${name} --adapter ${adapter}`,
    );
  return loadLora(await loadModel(baseOf(name), options), name);
}

/** `name=path` → both; a path alone is named after its last part. */
export function nameAndPath(text: string): { name: string; path: string } {
  const match = /^([\w.:-]+)=(.+)$/s.exec(text);
  if (match) return { name: match[1]!, path: match[2]! };
  return { name: basename(resolve(text)), path: text };
}
