// Peer of decode.ts: node-llama-cpp on a GGUF of the same shape (Q4_0 linears, Q8_0 tied head).
// usage: npm install --prefix bench/peers node-llama-cpp@3.22.1; node bench/cpu/decode-llama-cpp.mjs FILE.gguf [tokens] [threads]
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [file, tokens = "64", threads = "2"] = process.argv.slice(2);
const require = createRequire(new URL("../peers/package.json", import.meta.url));
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const llama = await getLlama({ gpu: false, build: "never", maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: 512, threads: Number(threads) });
console.log(llama.systemInfo);
for (let repeat = 0; repeat < 3; repeat++) {
  const sequence = context.getSequence();
  let count = 0;
  let first = 0;
  for await (const _ of sequence.evaluate([1, 2, 3, 4], { temperature: 0, yieldEogToken: true })) {
    if (first === 0) first = performance.now();
    if (++count >= Number(tokens)) break;
  }
  console.log(`${((count - 1) / ((performance.now() - first) / 1000)).toFixed(1)} tokens/s over ${count} tokens`);
  await sequence.dispose();
}
await model.dispose();
process.exit(0);
