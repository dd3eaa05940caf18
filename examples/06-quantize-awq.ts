/** 4-bit weights: AWQ against rounding to nearest, perplexity before and after, an AutoAWQ folder that other engines load. */
import { loadModel } from "@llm/models";
import { comparePerplexity, perplexityOf, quantize, saveQuantized } from "@llm/quant-awq";
import { ask, colourData, question, sentences, trainColours } from "./shared/colours.js";

const model = await trainColours();
const data = colourData(model.tokenizer);
const rtn = await quantize(model, { method: "rtn", groupSize: 32 });
const awq = await quantize(model, { method: "awq", groupSize: 32, calibration: data });

const { tokenizer } = model;
const blocks = sentences.map((text) => Int32Array.from([...tokenizer.encode(text), tokenizer.eosTokenId!]));
const before = await perplexityOf(model, blocks);
console.log(`dense  perplexity ${before.perplexity.toFixed(3)}  ${awq.quantization.bytesBefore} bytes`);
for (const [name, small] of Object.entries({ rtn, awq })) {
  const after = await perplexityOf(small, blocks);
  const { nll, standardError } = comparePerplexity(before, after);
  console.log(
    `${name}    perplexity ${after.perplexity.toFixed(3)}  ${small.quantization.bytesAfter} bytes  nll ${nll >= 0 ? "+" : ""}${nll.toFixed(4)} ± ${standardError.toFixed(4)}`,
  );
}
for (const { name, errorRtn = 0, errorAwq = 0 } of awq.quantization.linears.slice(0, 4)) {
  console.log(`${name}: error ${errorRtn.toExponential(2)} rounded, ${errorAwq.toExponential(2)} AWQ`);
}

const saved = await saveQuantized(awq, "./colours-awq");
console.log(
  `./colours-awq: ${saved.totalBytes} bytes, dense in the folder: ${saved.denseInFile.map(({ name }) => name).join(", ") || "none"}`,
);
const loaded = await loadModel("./colours-awq");
console.log(`${question("a lemon")}  ${await ask(loaded, question("a lemon"))}`);
