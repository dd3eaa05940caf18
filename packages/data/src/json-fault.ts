/**
 * Line and column (from 1) where a text stops being JSON; V8's own message does not always say. Undefined if the text is valid.
 * @see RFC 8259
 */
export function locateJsonFault(text: string): { line: number; column: number } | undefined {
  const token =
    /\s*(?:([{}[\],:])|("(?:[^"\\\u0000-\u001f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null))/y;
  const open: string[] = [];
  let expected: "value" | "value or end" | "key" | "key or end" | "colon" | "comma or end" | "nothing" = "value";
  const end = text.trimEnd().length;
  while (token.lastIndex < end) {
    const start = token.lastIndex;
    const match = token.exec(text);
    const [, mark, string, scalar] = match ?? [];
    const isValue = string !== undefined || scalar !== undefined;
    if (expected.startsWith("value") && (isValue || mark === "{" || mark === "[")) {
      if (mark !== undefined) open.push(mark);
      expected =
        mark === "{" ? "key or end" : mark === "[" ? "value or end" : open.length > 0 ? "comma or end" : "nothing";
    } else if (expected.startsWith("key") && string !== undefined) expected = "colon";
    else if (expected === "colon" && mark === ":") expected = "value";
    else if (expected === "comma or end" && mark === ",") expected = open.at(-1) === "{" ? "key" : "value";
    else if (expected.endsWith("or end") && mark === (open.at(-1) === "{" ? "}" : "]")) {
      open.pop();
      expected = open.length > 0 ? "comma or end" : "nothing";
    } else return placeOf(text, start + (/^\s*/.exec(text.slice(start, end))?.[0].length ?? 0));
  }
  return expected === "nothing" ? undefined : placeOf(text, end);
}

function placeOf(text: string, offset: number): { line: number; column: number } {
  const before = text.slice(0, offset);
  return { line: before.split("\n").length, column: offset - before.lastIndexOf("\n") };
}
