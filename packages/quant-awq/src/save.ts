import { UnsupportedError } from "@llm/core";
import type { CausalLM, SavedModel, SaveModelOptions } from "@llm/models";

/**
 * Writes an AutoAWQ "gemm" folder, in f16: what transformers, vLLM and LMDeploy load, and loadModel here. The integers and scales are
 * those in memory. Linears that the layout cannot hold (out features not a multiple of 8, in features not a multiple of the group, or
 * read as one with such a linear: q, k, v; gate, up) are written dense, listed in config.json's `modules_to_not_convert` and returned
 * with the reason. `model.save` does the same.
 * @returns the files, and `denseInFile`: what is quantized in memory and dense in the folder. Tell the user when it is not empty.
 * @throws {UnsupportedError} no linear is in 4 bits
 * @see AutoAWQ awq/models/base.py, save_quantized
 */
export async function saveQuantized(
  model: CausalLM,
  folder: string,
  options: SaveModelOptions = {},
): Promise<SavedModel> {
  if (!model.decoder.linears().some((l) => l.storage.kind === "w4")) {
    throw new UnsupportedError(
      "[saveQuantized] expected a model with 4-bit linears (quantize), got one without; model.save writes a dense folder",
    );
  }
  return model.save(folder, options);
}
