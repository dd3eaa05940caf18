/** A llama2.c checkpoint (PyTorch's .pt) becomes a Hugging Face folder. The file is read as data: no code in it runs. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { openSafetensors } from "@llm/core";
import { convertLlama2cCheckpoint, isTorchTensor, readTorchFile } from "@llm/models";

const file = fileURLToPath(new URL("../packages/models/src/fixtures/torch/llama2c.pt", import.meta.url));

const root = readTorchFile(file);
const weights = root instanceof Map ? root.get("model") : undefined;
if (!(weights instanceof Map)) throw new Error("expected a checkpoint with a state dict under model");
for (const [name, tensor] of [...weights].slice(0, 3)) {
  if (isTorchTensor(tensor)) console.log(`${String(name)}: ${tensor.dtype} [${tensor.shape.join(", ")}]`);
}

await convertLlama2cCheckpoint(file, "./converted");
const config = JSON.parse(readFileSync("./converted/config.json", "utf8")) as Record<string, unknown>;
console.log(`./converted: ${String(config["model_type"])}, ${String(config["num_hidden_layers"])} layers`);
const folder = openSafetensors("./converted");
for (const [name, { dtype, shape }] of [...folder.tensors].slice(0, 3))
  console.log(`${name}: ${dtype} [${shape.join(", ")}]`);
folder.close();
