import { stripReasoning } from "./option-label.js";

/**
 * The final number of a worked answer.
 * - "flexible": the last run of digits, `$`, `,` and `.` (two characters or more) or last integer (lm-evaluation-harness `flexible-extract`)
 * - "strict": what follows the first `#### ` (lm-evaluation-harness `strict-match`)
 * - "opencompass": text up to a next "Question:", last integer or decimal; it cannot read thousands separators
 */
export type NumberExtractor = "flexible" | "strict" | "opencompass";

/**
 * The final number of an answer by one of the rules of {@link NumberExtractor}; reasoning between think tags is left out first.
 * @returns the number as written, or undefined where there is none
 * @see EleutherAI/lm-evaluation-harness lm_eval/tasks/gsm8k/gsm8k.yaml; open-compass/opencompass opencompass/datasets/gsm8k.py
 */
export function extractNumber(answer: string, extractor: NumberExtractor): string | undefined {
  const text = stripReasoning(answer);
  if (extractor === "strict") return /#### (-?[0-9.,]+)/.exec(text)?.[1];
  if (extractor === "opencompass")
    return text
      .split("Question:")[0]!
      .match(/-?\d+\.\d+|-?\d+/g)
      ?.at(-1);
  return text
    .match(/-?[$0-9.,]{2,}|-?[0-9]+/g)
    ?.at(-1)
    ?.trim();
}

/** A gsm8k answer's number: what follows its last `#### `. Undefined when there is none. */
export function referenceNumber(answer: string): string | undefined {
  const at = answer.lastIndexOf("#### ");
  return at < 0 ? undefined : answer.slice(at + 5).trim();
}

/** Without `,`, `$`, text up to `#### `, a final full stop, and in lower case: what lm-evaluation-harness compares. */
function bare(text: string): string {
  return text
    .replace(/[,$]/g, "")
    .replace(/^.*#### /s, "")
    .replace(/\.$/, "")
    .toLowerCase();
}

/** Whether an extracted number is the reference's, by the extractor's own rule of comparison. */
export function sameNumber(extracted: string | undefined, reference: string, extractor: NumberExtractor): boolean {
  if (extracted === undefined) return false;
  if (extractor !== "opencompass") return bare(extracted) === bare(reference);
  const target = reference.replaceAll(",", "");
  return extracted === target || Math.abs(Number(extracted) - Number.parseInt(target, 10)) < 1e-6;
}
