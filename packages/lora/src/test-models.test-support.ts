/** Small models for the tests of this package. */
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type CausalLM, createModel, loadModel, loadTokenizer } from "@llm/models";

/** What tools/oracle wrote for @llm/models and for this package. */
export const modelFixtures = fileURLToPath(new URL("../../models/src/fixtures/oracle/", import.meta.url));
export const fixtures = fileURLToPath(new URL("./fixtures/", import.meta.url));

export const scratchFolder = (): string => mkdtempSync(join(tmpdir(), "lora-"));

const config = (name: string): Record<string, unknown> =>
  (
    JSON.parse(readFileSync(`${modelFixtures}logits.json`, "utf8")) as {
      weights: string;
      config: Record<string, unknown>;
    }[]
  ).find((c) => c.weights === name)!.config;

/** A model of the oracle's weights, with the config of their first case. */
export async function oracleModel(name: string, options: Parameters<typeof loadModel>[1] = {}): Promise<CausalLM> {
  const folder = scratchFolder();
  writeFileSync(join(folder, "config.json"), JSON.stringify(config(name)));
  copyFileSync(`${modelFixtures}tokenizer.json`, join(folder, "tokenizer.json"));
  for (const file of readdirSync(`${modelFixtures}weights/${name}`))
    copyFileSync(`${modelFixtures}weights/${name}/${file}`, join(folder, file));
  return loadModel(folder, options);
}

/** Random weights for such a config. */
export async function randomModel(name: string, options: Parameters<typeof createModel>[2] = {}): Promise<CausalLM> {
  return createModel(config(name), await loadTokenizer(modelFixtures), { seed: 5, initStd: 0.2, ...options });
}

export function logitsOf(model: CausalLM, ids: readonly number[] = [5, 17, 3, 80, 41, 41, 9, 66, 2]): Float32Array {
  const logits = model.logits(Int32Array.from(ids));
  const values = logits.dataSync() as Float32Array;
  logits.dispose();
  return values;
}

export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Infinity;
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
}
