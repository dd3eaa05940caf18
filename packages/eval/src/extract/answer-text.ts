/**
 * Answers as they are compared when spelling should not matter: Unicode NFKC (full-width forms become plain), lower case,
 * the articles a, an, the removed, apostrophes and full stops removed, other punctuation taken as white space, runs of
 * which become one space. A decimal point and a leading minus stay and thousands separators go, so that numbers stay themselves.
 * @see Rajpurkar et al., SQuAD (2016), whose evaluation script normalises English in a similar way
 */
export function normalizeAnswer(text: string): string {
  return text
    .normalize("NFKC")
    .toLowerCase()
    .replace(/(?<=\d),(?=\d{3}(?:\D|$))/g, "")
    .replace(/(?<![\p{L}\p{N}])[-−](?=\d)/gu, "\u0001")
    .replace(/(?<=\d)\.(?=\d)/g, "\u0002")
    .replace(/['’.]/g, "")
    .replace(/\p{P}+/gu, " ")
    .replace(/\b(?:a|an|the)\b/g, " ")
    .replaceAll("\u0001", "-")
    .replaceAll("\u0002", ".")
    .replace(/\s+/g, " ")
    .trim();
}

/** The first line that holds something. */
export function firstLine(text: string): string {
  return (
    text
      .split("\n")
      .map((line) => line.trim())
      .find((line) => line !== "") ?? ""
  );
}
