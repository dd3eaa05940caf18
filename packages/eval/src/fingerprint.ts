import { LlmError } from "@llm/core";
import { generateText } from "./ask.js";
import { sha256, type EvaluatedModel } from "./task.js";

const PROBE = "The quick brown fox jumps over 13 lazy dogs. 2 + 2 = 4. 敏捷的棕色狐狸跳过了十三只懒狗。";

/**
 * A text that changes when the model's answers could change. What the model says of itself (`fingerprint`) comes first;
 * otherwise the log-probabilities of a fixed sentence (five significant digits), so other weights, another quantization
 * or a merged adapter are another model. A model that cannot score is known by its greedy continuation instead.
 * The tokenizer's size and chat template are part of it.
 */
export async function modelFingerprint(model: EvaluatedModel, signal?: AbortSignal): Promise<string> {
  if (model.fingerprint !== undefined) return sha256(`given:${model.fingerprint}`);
  const { tokenizer } = model;
  const about = `${tokenizer.vocabSize}:${tokenizer.chatTemplate ?? ""}`;
  const options = signal === undefined ? {} : { signal };
  try {
    const ids = tokenizer.encode(PROBE).slice(0, Math.max(2, model.maxTokens));
    const [score] = await model.score(ids.slice(0, 1), [ids.slice(1)], options);
    const numbers = [...score!.tokenLogprobs].map((value) => value.toPrecision(5));
    return sha256(`score:${about}:${ids.join(",")}:${numbers.join(",")}`);
  } catch (error) {
    if (!LlmError.isInstance(error, "UNSUPPORTED")) throw error;
  }
  const { text } = await generateText(model, PROBE, { maxTokens: 16, ...options });
  return sha256(`generate:${about}:${text}`);
}
