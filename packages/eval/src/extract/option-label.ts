/**
 * Which option a free answer chooses.
 *
 * The rules, in order; the first that finds a label decides:
 *  1. bare       the whole answer is a label, whatever brackets, quotes, stars or full stops surround it: `B`, `(B)`, `**B.**`
 *  2. boxed      `\boxed{B}`, `\text{B}` inside it included
 *  3. declared   a statement of the answer: "the answer is B", "Answer: (B)", "correct option is **B**", "I choose B",
 *                "it is B.", "B is correct", 答案是B, 答案：B, 应选B, 故选 B, 选择B, 是B。, B 是正确的, 选项B正确
 *  4. leading    the answer begins with a label and a separator: `B. because …`, `B) …`, `B：…`, `B` on a line of its own
 *  5. concluding a conclusion at the end: "therefore B.", 因此B, 所以B。, or a last line that is only a label
 *  6. text       the full text of exactly one option occurs in the answer (letter case ignored)
 *  7. standing   a label that stands alone between punctuation or line ends: `… (C) …`, `… C, …`
 * A label that is ruled out ("not A", 不是A) never counts. Among several matches of one rule the first in the text
 * does. Nothing found = undefined: the item counts as
 * unanswered (and wrong). With `lastResort: "nearest"` the option at the smallest edit distance is taken instead, as
 * OpenCompass does.
 * @see open-compass/opencompass opencompass/datasets/custom.py (OptionSimAccEvaluator), whose order of stages this follows
 */
export function extractOptionLabel(
  answer: string,
  options: ReadonlyMap<string, string>,
  settings: { lastResort?: "none" | "nearest" } = {},
): string | undefined {
  const text = stripReasoning(answer).trim();
  const labels = [...options.keys()];
  if (text !== "") {
    const byRule = matchRules(text, labels);
    if (byRule.early !== undefined) return byRule.early;
    const folded = text.toLowerCase();
    const contained = labels.filter((label) => {
      const optionText = options.get(label)!.trim().toLowerCase();
      return optionText !== "" && containsWhole(folded, optionText);
    });
    if (contained.length === 1) return contained[0];
    if (byRule.late !== undefined) return byRule.late;
  }
  if (settings.lastResort !== "nearest") return undefined;
  let best: string | undefined;
  let bestDistance = Number.POSITIVE_INFINITY;
  for (const label of labels)
    for (const candidate of [label, options.get(label)!, `${label}. ${options.get(label)!}`]) {
      const distance = editDistance(text, candidate);
      if (distance < bestDistance) [best, bestDistance] = [label, distance];
    }
  return best;
}

/** Text after a model's reasoning: everything up to the last `</think>` is dropped; an unfinished `<think>` leaves nothing. */
export function stripReasoning(text: string): string {
  const end = text.lastIndexOf("</think>");
  if (end >= 0) return text.slice(end + "</think>".length);
  const start = text.indexOf("<think>");
  return start >= 0 ? text.slice(0, start) : text;
}

/** Whether a text occurs, not as part of a longer number or Latin word ("99" is not in "998"). */
function containsWhole(text: string, part: string): boolean {
  const wordLike = /[\p{Script=Latin}\p{N}]/u;
  for (let at = text.indexOf(part); at >= 0; at = text.indexOf(part, at + 1)) {
    const before = text[at - 1] ?? "";
    const after = text[at + part.length] ?? "";
    const joinedLeft = wordLike.test(part[0]!) && wordLike.test(before);
    const joinedRight = wordLike.test(part.at(-1)!) && wordLike.test(after);
    if (!joinedLeft && !joinedRight) return true;
  }
  return false;
}

function matchRules(text: string, labels: readonly string[]): { early?: string; late?: string } {
  const escaped = labels.map((label) => label.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  /** A label, not inside a Latin word or number, and not ruled out ("not A", 不是A). */
  const label = `(?<!(?:[Nn][Oo][Tt]\\s|[Nn]'t\\s|不是|不选|并非|排除)[\\s*(（"]*)(?<![\\p{Script=Latin}\\p{N}])(${escaped})(?![\\p{Script=Latin}\\p{N}]|['’]\\p{Script=Latin})`;
  const open = "[\\s*_`\"'“‘(（\\[【{$]*";
  const close = "[\\s*_`\"'”’)）\\]】}$.。,，:：!！;；]*";
  const first = (source: string): string | undefined => new RegExp(source, "u").exec(text)?.[1];

  const early =
    first(`^${open}${label}${close}$`) ??
    first(`\\\\boxed\\s*\\{\\s*(?:\\\\(?:text|textbf|mathrm)\\s*\\{)?[\\s(]*(${escaped})[\\s).]*\\}`) ??
    firstOf(text, label, [
      // "answer", "option", "choice" … followed by is, :, = and the label
      `(?:answer|option|choice)(?:\\s+(?:to|of|for)\\s[^.:\\n]{0,60}?)?\\s*(?:(?:is|are|was|would be|should be|must be)\\s*[:：]?|[:：=])\\s*(?:the\\s+)?(?:correct\\s+)?(?:option|choice|letter)?\\s*[:：]?${open}${slot}`,
      `(?:i|we)\\s+(?:would\\s+|will\\s+)?(?:choose|select|pick)\\s+(?:the\\s+)?(?:option|choice|answer)?${open}${slot}`,
      `${slot}${close}\\s+(?:is|would be)\\s+(?:the\\s+)?(?:correct|right|best)`,
      `(?:it|that|this)\\s+(?:is|must be|should be)\\s+(?:option|choice)?${open}${slot}(?=$|[\\s*)）]*[.。,，;；!！\\n]|\\s*$)`,
      `是\\s*${slot}(?=[\\s*)）]*[.。,，;；!！\\n]|\\s*$)`,
      `答案(?:选项)?(?:应该|应当|应)?(?:是|为|选|选择)?\\s*[:：]?(?:选项)?${open}${slot}`,
      `(?:应该选择|应该选|应选择|应选|故选择|故选|选择|正确选项[是为]?|正确的[是为]|选)\\s*[:：]?(?:选项)?${open}${slot}(?!\\s*(?:项|选项)?\\s*(?:错|不))`,
      `(?:选项)?\\s*${slot}\\s*(?:选项|项)?\\s*(?:是)?正确`,
    ]) ??
    first(`^${open}${label}\\s*[)）\\]】*]*\\s*(?:[.。:：,，、;；)）]|\\n)`) ??
    first(withLabel(`(?:therefore|thus|hence|so|因此|所以|显然|即|故)\\s*[,，:：]?${open}${slot}${close}$`, label)) ??
    first(`\\n${open}${label}${close}$`);
  const late = first(`(?:^|[\\s(（"“'‘:：,，;；。])${label}(?=$|\\n|\\s*[)）"”'’.。,，:：;；!！?？])`);
  return { ...(early === undefined ? {} : { early }), ...(late === undefined ? {} : { late }) };
}

/** Stands for the label's pattern while the words around it are made to match either case. */
const slot = "\u0001";

/** The label of whichever pattern matches earliest in the text. Words match in any case, labels only as they are written. */
function firstOf(text: string, label: string, sources: readonly string[]): string | undefined {
  let best: { at: number; label: string } | undefined;
  for (const source of sources) {
    const match = new RegExp(withLabel(source, label), "u").exec(text);
    if (match && (!best || match.index < best.at)) best = { at: match.index, label: match[1]! };
  }
  return best?.label;
}

/** A pattern whose Latin letters match either case, with the label's own pattern put in its slot. */
function withLabel(source: string, label: string): string {
  const folded = source.replace(/\\.|[a-z]/g, (part) => (part.length === 1 ? `[${part}${part.toUpperCase()}]` : part));
  return folded.replaceAll(slot, () => label);
}

/** Levenshtein distance in characters (code points). */
export function editDistance(left: string, right: string): number {
  const a = [...left];
  const b = [...right];
  let previous = b.map((_, j) => j + 1);
  previous.unshift(0);
  for (let i = 0; i < a.length; i++) {
    const current = [i + 1];
    for (let j = 0; j < b.length; j++)
      current.push(Math.min(current[j]! + 1, previous[j + 1]! + 1, previous[j]! + (a[i] === b[j] ? 0 : 1)));
    previous = current;
  }
  return previous[b.length]!;
}
