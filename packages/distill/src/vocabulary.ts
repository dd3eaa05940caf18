import { UnsupportedError } from "@llm/core";
import type { Tokenizer } from "@llm/models";

/** Encoded by both tokenizers: normalisation and merging must agree as well as the table of tokens. */
const probe = "The year 2024: naïve café — 3,141.59 km²!\n\tfor (i = 0; i < 10; i++) {}  你好，世界。🙂 İstanbul";

/**
 * Checks that ids mean the same to both: equal size, equal spelling of every id, equal special tokens, equal ids of a probe text.
 * @throws {UnsupportedError} naming the first difference
 */
export function checkSameVocabulary(teacher: Tokenizer, student: Tokenizer): void {
  if (teacher === student) return;
  const differ = (what: string, ofTeacher: unknown, ofStudent: unknown): never => {
    throw new UnsupportedError(
      `[distill] teacher and student must share one vocabulary, because probabilities are compared id by id: ${what} is ${JSON.stringify(ofTeacher)} for the teacher and ${JSON.stringify(ofStudent)} for the student`,
      { what, teacher: ofTeacher, student: ofStudent },
    );
  };
  if (teacher.vocabSize !== student.vocabSize) differ("the number of tokens", teacher.vocabSize, student.vocabSize);
  for (let id = 0; id < teacher.vocabSize; id++) {
    const [a, b] = [teacher.idToToken(id), student.idToToken(id)];
    if (a !== b) differ(`token ${id}`, a ?? null, b ?? null);
  }
  for (const text of new Set([...teacher.specialTokens.keys(), ...student.specialTokens.keys()])) {
    const [a, b] = [teacher.specialTokens.get(text), student.specialTokens.get(text)];
    if (a !== b) differ(`special token ${text}`, a ?? null, b ?? null);
  }
  const [a, b] = [teacher, student].map((t) => [...t.encode(probe)]) as [number[], number[]];
  if (a.length !== b.length || a.some((id, i) => id !== b[i])) differ("the ids of a probe text", a, b);
}
