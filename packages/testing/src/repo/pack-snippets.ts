/**
 * One cheap thing to call in each published package, run by the pack test after an installation from tarballs: as an ES
 * module, through `require`, and type-checked. `m` is the package, `assert` is node:assert/strict; `await` is allowed.
 * A package that exports a value and has no row here fails the test.
 */
export const packSnippets: Readonly<Record<string, string>> = {
  "@llm/core": `
    assert.equal(m.dtypeBytes("bf16"), 2);
    assert.equal(m.LlmError.isInstance(new m.ShapeError("[pack] expected [2], got [3]"), "SHAPE"), true);
    const square = m.tensor([1, 2, 3, 4], [2, 2]);
    assert.deepEqual([...(await m.matmul(square, square).data())], [7, 10, 15, 22]);
  `,
  "@llm/data": `
    const bins = m.packBestFitDecreasing([6, 7, 3, 4], 10);
    assert.equal(bins.length, 2);
  `,
  "@llm/kvcache": `
    assert.equal(m.planKvBudget({ freeBytes: 1e6, maxEntryCount: 3, layers: 2, kvHeads: 2, headDim: 64 }), 3);
  `,
  "@llm/eval": `
    assert.equal(m.extractNumber("6 * 7 = 42\\n#### 42", "strict"), "42");
  `,
  "@llm/models": `
    const tokenizer = m.trainBpe(["one two"], { vocabSize: 259, specialTokens: ["<end>"], eosToken: "<end>" });
    assert.equal(tokenizer.decode(tokenizer.encode("one two")), "one two");
  `,
  "@llm/parallel": `
    assert.equal(m.batchWeight({ labels_T: Int32Array.of(3, -100, 4) }), 2);
  `,
  "@llm/lora": `
    assert.equal(typeof m.applyLora, "function");
    assert.equal(m.LoraOptions.entries.rank.default, 8);
  `,
  "@llm/distill": `
    assert.equal(m.alphaSchedule(0.5)(3, 10), 0.5);
  `,
  "@llm/quant-awq": `
    const measured = { perplexity: 2, nll: 1, tokens: 2, blocks: [{ nll: 1, tokens: 1 }, { nll: 1, tokens: 1 }] };
    assert.equal(m.comparePerplexity(measured, measured).nll, 0);
  `,
  "@llm/serve": `
    assert.equal(m.createClient({ baseUrl: "http://127.0.0.1:1/v1" }).baseUrl, "http://127.0.0.1:1");
    assert.throws(() => new m.Scheduler({ blockCount: 0, maxSequenceTokens: 1 }));
  `,
  "@llm/cli": `
    assert.deepEqual(m.defineConfig({ model: "./model" }), { model: "./model" });
  `,
};
