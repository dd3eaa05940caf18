/** Answers of the model in training. */
import type { CausalLM } from "@llm/models";
import type * as v from "valibot";
import type { TrainSampleOptions } from "./options.js";
import type { TrainSample } from "./report.js";

/** Generates an answer to each prompt with the weights as they are. */
export async function sampleAnswers(
  model: CausalLM,
  options: v.InferOutput<typeof TrainSampleOptions>,
  signal: AbortSignal | undefined,
): Promise<TrainSample[]> {
  const { prompts, maxTokens, temperature } = options;
  const samples = prompts.map((prompt): TrainSample => ({
    prompt: typeof prompt === "string" ? prompt : (prompt.messages.at(-1)?.content ?? ""),
    text: "",
  }));
  for await (const event of model.generate(prompts, { maxTokens, temperature, ...(signal ? { signal } : {}) })) {
    if (event.type === "finish") samples[event.index]!.text = event.text;
  }
  return samples;
}
