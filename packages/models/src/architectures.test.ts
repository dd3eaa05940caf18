import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openSafetensors } from "@llm/core";
import { afterAll, describe, expect, it } from "vitest";
import { type CausalLM, loadModel } from "./index.js";

// Logits of transformers on the same files; tools/oracle/logits.py wrote them.
const fixtures = fileURLToPath(new URL("./fixtures/oracle/", import.meta.url));
const cases = JSON.parse(readFileSync(`${fixtures}logits.json`, "utf8")) as {
  name: string;
  weights: string;
  config: Record<string, unknown>;
  ids: number[];
}[];
const answers = openSafetensors(`${fixtures}logits.safetensors`);
const scratch = mkdtempSync(join(tmpdir(), "architectures-"));
afterAll(() => {
  answers.close();
  rmSync(scratch, { recursive: true, force: true });
});

/** A Hugging Face folder of a case. */
function folderOf({ name, weights, config }: (typeof cases)[number]): string {
  const folder = mkdtempSync(join(scratch, `${name}-`));
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  copyFileSync(`${fixtures}tokenizer.json`, join(folder, "tokenizer.json"));
  for (const file of readdirSync(`${fixtures}weights/${weights}`))
    copyFileSync(`${fixtures}weights/${weights}/${file}`, join(folder, file));
  return folder;
}

const answer = (name: string): Float32Array => new Float32Array(answers.read(name).buffer);

function logitsOf(model: CausalLM, ids: readonly number[]): Float32Array {
  const logits = model.logits(Int32Array.from(ids));
  const values = logits.dataSync() as Float32Array;
  logits.dispose();
  return values;
}

const difference = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  expect(a.length).toBe(b.length);
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
};

describe("logits of every architecture and rotary variant", () => {
  it.each(cases.map((c) => [c.name, c] as const))("%s gives the reference's logits within 1e-4", async (name, c) => {
    const model = await loadModel(folderOf(c));
    expect(difference(logitsOf(model, c.ids), answer(name))).toBeLessThan(1e-4);
    model.dispose();
  });

  it.each(["dynamic-beyond", "qwen-45-ntk-logn"])(
    "%s: a short text between two long ones changes neither",
    async (name) => {
      const c = cases.find((x) => x.name === name)!;
      const model = await loadModel(folderOf(c));
      const [short, long] = [c.ids.slice(0, 17), c.ids];
      const alone = logitsOf(model, short);
      const first = logitsOf(model, long);
      expect(logitsOf(model, short)).toEqual(alone);
      expect(logitsOf(model, long)).toEqual(first);
      expect(difference(first, answer(name))).toBeLessThan(1e-4);
      model.dispose();
    },
  );

  it("the variants differ from each other, so that a variant that is ignored would be seen", () => {
    const last = (name: string): Float32Array => answer(name).slice(-97);
    const rotary = ["linear", "dynamic-beyond", "llama3", "yarn", "yarn-attention-factor", "yarn-mscale", "yarn-betas"];
    const qwen = ["qwen-45-ntk-logn", "qwen-45", "qwen-45-ntk", "qwen-45-logn"];
    for (const group of [rotary, qwen]) {
      for (const a of group)
        for (const b of group) if (a < b) expect(difference(last(a), last(b))).toBeGreaterThan(1e-2);
    }
  });

  it.each(["qwen2-tied", "llama", "internlm2-biased", "qwen-45-ntk-logn"])(
    "%s saved and loaded again has the same tensors and logits, bit for bit",
    async (name) => {
      const c = cases.find((x) => x.name === name)!;
      const model = await loadModel(folderOf(c));
      const copy = mkdtempSync(join(scratch, "saved-"));
      await model.save(copy, { maxShardSize: "40KB" });
      const again = await loadModel(copy);
      const [before, after] = [openSafetensors(`${fixtures}weights/${c.weights}`), openSafetensors(copy)];
      expect([...after.tensors.keys()].sort()).toEqual([...before.tensors.keys()].sort());
      for (const key of before.tensors.keys())
        expect(Buffer.from(after.read(key)).equals(Buffer.from(before.read(key))), key).toBe(true);
      before.close();
      after.close();
      expect(logitsOf(again, c.ids)).toEqual(logitsOf(model, c.ids));
      model.dispose();
      again.dispose();
    },
  );

  it("greedy generation continues as the argmax of the full forward pass does", async () => {
    const c = cases.find((x) => x.name === "mistral")!;
    const model = await loadModel(folderOf(c));
    const ids = c.ids.slice(0, 9);
    const generated: number[] = [];
    for await (const event of model.generate([Int32Array.from(ids)], { maxTokens: 12, ignoreEos: true }))
      if (event.type === "finish") generated.push(...event.tokenIds);
    for (let i = 0; i < 12; i++) {
      const row = logitsOf(model, ids).slice(-97);
      ids.push(row.indexOf(Math.max(...row)));
    }
    expect(generated).toEqual(ids.slice(9));
    model.dispose();
  });
});
