import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { convertLlama2cCheckpoint, loadModel } from "./index.js";

const assets = resolve(process.env["LLM_ASSETS"] ?? "../shared/assets");
const folder = `${assets}/w-stories260K`;
const present = existsSync(folder);
if (!present) console.log(`skipped: ${folder} is absent (set LLM_ASSETS)`);

describe.skipIf(!present)("stories260K, a trained Llama", () => {
  const reference = JSON.parse(present ? readFileSync(`${folder}/reference.json`, "utf8") : "{}") as {
    greedy_ids: number[];
    greedy_nll: number[];
    logits_at: Record<string, number[]>;
  };

  it("continues greedily exactly as the f64 reference for all 256 steps", async () => {
    const model = await loadModel(`${folder}/hf`);
    const ids: number[] = [1];
    for await (const event of model.generate([Int32Array.of(1)], { maxTokens: 255, ignoreEos: true })) {
      if (event.type === "finish") ids.push(...event.tokenIds);
    }
    expect(ids).toEqual(reference.greedy_ids.slice(0, 256));
    model.dispose();
  });

  it("gives the reference's logits within 1e-4", async () => {
    const model = await loadModel(`${folder}/hf`);
    const ids = Int32Array.from(reference.greedy_ids);
    const logits = model.logits(ids);
    const values = logits.dataSync();
    for (const [at, expected] of Object.entries(reference.logits_at)) {
      const row = Number(at) * 512;
      for (let i = 0; i < 512; i++) expect(Math.abs(Number(values[row + i]) - expected[i]!)).toBeLessThan(1e-4);
    }
    logits.dispose();
    model.dispose();
  });

  it("scores the greedy continuation token by token within 1e-3 of the reference", async () => {
    const model = await loadModel(`${folder}/hf`);
    const [score] = await model.score(Int32Array.of(1), [Int32Array.from(reference.greedy_ids.slice(1))]);
    reference.greedy_nll.forEach((nll, i) => expect(Math.abs(-score!.tokenLogprobs[i]! - nll)).toBeLessThan(1e-3));
    // A token may be the likeliest of all by less than f32 can tell; over the whole text the sums agree.
    expect(Math.abs(-score!.logprob - reference.greedy_nll.reduce((a, b) => a + b, 0))).toBeLessThan(1e-2);
    model.dispose();
  });

  it("gives the same ids from the .pt checkpoint that we convert", async () => {
    const converted = mkdtempSync(join(tmpdir(), "llm-stories-"));
    try {
      await convertLlama2cCheckpoint(`${folder}/stories260K.pt`, converted);
      cpSync(`${folder}/hf/tokenizer.model`, join(converted, "tokenizer.model"));
      const model = await loadModel(converted);
      const ids: number[] = [1];
      for await (const event of model.generate([Int32Array.of(1)], { maxTokens: 255, ignoreEos: true }))
        if (event.type === "finish") ids.push(...event.tokenIds);
      expect(ids).toEqual(reference.greedy_ids.slice(0, 256));
      model.dispose();
    } finally {
      rmSync(converted, { recursive: true, force: true });
    }
  });
});
