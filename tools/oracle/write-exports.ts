/** Writes what check_exports.py loads: write-exports.ts <new folder>. For each model: base/, adapter/, merged/ (sharded), logits.json. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { adapterParameters, applyLora, mergeLora, saveLora } from "@llm/lora";
import { type CausalLM, createModel, loadTokenizer } from "@llm/models";

const fixtures = fileURLToPath(new URL("../../packages/models/src/fixtures/oracle/", import.meta.url));
const cases = JSON.parse(readFileSync(`${fixtures}logits.json`, "utf8")) as {
  name: string;
  config: Record<string, unknown>;
  ids: number[];
}[];
const out = process.argv[2];
if (out === undefined) throw new Error("usage: node tools/run-ts.mjs tools/oracle/write-exports.ts <new folder>");

const adapters: Record<string, Parameters<typeof applyLora>[1]> = {
  qwen2: {},
  "qwen2-tied": { rank: 3, alpha: 7, rsLora: true, targets: ["q_proj", "v_proj", "layers.1.mlp.down_proj"] },
  qwen3: { rank: 4, dropout: 0.1, targets: /mlp|o_proj/ },
  llama: { rank: 2 },
  "llama-biased": { targets: ["gate_proj"] },
  mistral: { targets: ["layers.0.self_attn.q_proj"] },
  yarn: {},
  internlm2: { rank: 5 },
  "internlm2-biased": { rank: 2, rsLora: true, targets: ["q_proj", "v_proj", "wo"] },
};

const tokenizer = await loadTokenizer(fixtures);
const logitsOf = (model: CausalLM, ids: number[]): number[] =>
  Array.from(model.logits(Int32Array.from(ids)).dataSync() as Float32Array);

for (const [name, lora] of Object.entries(adapters)) {
  const { config, ids } = cases.find((c) => c.name === name)!;
  const base = createModel(config, tokenizer, { seed: 11, initStd: 0.2 });
  const model = applyLora(base, lora);
  for (const { name: n, tensor } of adapterParameters(model)) {
    if (n.includes("lora_B"))
      tensor.write(Float32Array.from({ length: tensor.size }, (_, i) => 0.2 * Math.sin(1.3 * i + n.length)));
  }
  const merged = mergeLora(model);
  const folder = (part: string): string => join(out, name, part);
  await base.save(folder("base"));
  await saveLora(model, folder("adapter"), { baseModel: folder("base") });
  await merged.save(folder("merged"), { maxShardSize: "60KB" });
  const text = "Hello, world! 42";
  const logits = {
    ids,
    base: logitsOf(base, ids),
    adapter: logitsOf(model, ids),
    merged: logitsOf(merged, ids),
    text,
    textIds: Array.from(tokenizer.encode(text)),
  };
  writeFileSync(folder("logits.json"), JSON.stringify(logits));
  console.log(`wrote ${name}`);
}
