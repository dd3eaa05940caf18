import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { asset } from "../test-assets.test-support.js";
import { firstLine, normalizeAnswer } from "./answer-text.js";
import { extractNumber, referenceNumber, sameNumber, type NumberExtractor } from "./final-number.js";
import { editDistance, extractOptionLabel } from "./option-label.js";

const OPTIONS = new Map([
  ["A", "998"],
  ["B", "1008"],
  ["C", "988"],
  ["D", "the blue whale"],
]);

describe("extractOptionLabel", () => {
  it.each<[string, string | undefined]>([
    // bare
    ["B", "B"],
    [" B ", "B"],
    ["(B)", "B"],
    ["B.", "B"],
    ["**B**", "B"],
    ["**B.**", "B"],
    ["“C”", "C"],
    ["'C'", "C"],
    ["【D】", "D"],
    ["Ｂ", undefined],
    // boxed
    ["The result is \\boxed{C}.", "C"],
    ["so $\\boxed{\\text{D}}$", "D"],
    // declared, English
    ["The answer is B.", "B"],
    ["The correct answer is: (C) because 500 + 488 = 988", "C"],
    ["Answer: A", "A"],
    ["ANSWER: D\nQuestion: what is B?", "D"],
    ["I think the correct option is **C**.", "C"],
    ["The answer to the question is B, not A.", "B"],
    ["I would choose option B.", "B"],
    ["B is the correct answer; A is too small.", "B"],
    ["Let me see. A is tempting. The answer is C.", "C"],
    ["The right choice would be (D)", "D"],
    ["The answer is not A, it is B.", "B"],
    ["不是A，是B。", "B"],
    // declared, Chinese
    ["答案是B", "B"],
    ["答案：C", "C"],
    ["正确答案为 D。", "D"],
    ["因为165+833=998，故选A。", "A"],
    ["应选择 B", "B"],
    ["我选B", "B"],
    ["C是正确的", "C"],
    ["选项D正确", "D"],
    ["选项A错误，应选C", "C"],
    // leading
    ["B. 1008 is what I get", "B"],
    ["C) 988", "C"],
    ["C：988", "C"],
    ["A\nQuestion: 2+2=\nA. 4\nB. 5\nAnswer: B", "B"],
    ["A\nbecause it fits", "A"],
    // concluding
    ["First add the tens, then the units. Therefore B.", "B"],
    ["我们先算个位。因此C。", "C"],
    ["Adding up.\n\nD", "D"],
    // option text
    ["It is the Blue Whale, of course", "D"],
    ["165+833 makes 998", "A"],
    ["1998", undefined],
    ["998 or 988", undefined],
    // standing alone
    ["I am torn but go with (C) today", "C"],
    // nothing
    ["", undefined],
    ["A robe takes two bolts of cloth", undefined],
    ["I do not know", undefined],
    ["Because of the ABC of it", undefined],
    ["E", undefined],
    // reasoning is not the answer
    ["<think>The answer is A? No.</think>The answer is B", "B"],
    ["<think>The answer is A", undefined],
  ])("reads %j as %s", (text, label) => {
    expect(extractOptionLabel(text, OPTIONS)).toBe(label);
  });

  it("takes the nearest option only when told to", () => {
    expect(extractOptionLabel("the blu whale", OPTIONS)).toBeUndefined();
    expect(extractOptionLabel("the blu whale", OPTIONS, { lastResort: "nearest" })).toBe("D");
    expect(editDistance("kitten", "sitting")).toBe(3);
    expect(editDistance("", "ab")).toBe(2);
  });
});

describe("extractNumber", () => {
  it.each<[string, NumberExtractor, string | undefined]>([
    ["so 16 - 3 = 13.\n#### 13", "strict", "13"],
    ["#### 2,125", "strict", "2,125"],
    ["#### 5\n#### 6", "strict", "5"],
    ["####7", "strict", undefined],
    ["The answer is $1,234.50.", "flexible", "$1,234.50."],
    ["It is 7", "flexible", "7"],
    ["-3 or -4", "flexible", "-4"],
    ["none", "flexible", undefined],
    ["The answer is 18\n\nQuestion: 5 apples", "opencompass", "18"],
    ["3.5 then 2,125", "opencompass", "125"],
    ["-12", "opencompass", "-12"],
    ["none", "opencompass", undefined],
    ["<think>99</think>It is 12", "flexible", "12"],
  ])("reads %j (%s) as %s", (text, extractor, number) => {
    expect(extractNumber(text, extractor)).toBe(number);
  });

  it("compares numbers as each harness does", () => {
    expect(sameNumber("$2,125.", "2125", "flexible")).toBe(true);
    expect(sameNumber("2125.0", "2125", "flexible")).toBe(false);
    expect(sameNumber("2125.0", "2,125", "opencompass")).toBe(true);
    expect(sameNumber(undefined, "1", "opencompass")).toBe(false);
  });

  const gsm8k = asset("eval-gsm8k", "test.jsonl");
  const solutions = asset("eval-gsm8k-model-solutions", "example_model_solutions.jsonl");
  const lines = (file: string): Record<string, never>[] =>
    readFileSync(file, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, never>);

  it.skipIf(!gsm8k)("reads the reference answers of all 1319 problems, as OpenCompass 1305 of them", () => {
    const rows = lines(gsm8k!);
    const count = (extractor: NumberExtractor): number =>
      rows.filter(({ answer }) => sameNumber(extractNumber(answer, extractor), referenceNumber(answer)!, extractor))
        .length;
    expect(rows.length).toBe(1319);
    expect(count("strict")).toBe(1319);
    expect(count("flexible")).toBe(1319);
    expect(count("opencompass")).toBe(1305);
  });

  it.skipIf(!gsm8k || !solutions)("agrees with the labels of four models' 5276 solutions", () => {
    const references = lines(gsm8k!).map(({ answer }) => referenceNumber(answer)!);
    const counts = (extractor: NumberExtractor): number[] =>
      ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"].map((model) => {
        const rows = lines(solutions!) as unknown as Record<string, { solution: string; is_correct: boolean }>[];
        return rows.filter((row, i) =>
          sameNumber(extractNumber(row[model]!.solution, extractor), references[i]!, extractor),
        ).length;
      });
    expect(counts("flexible")).toEqual([286, 515, 458, 742]);
    expect(counts("opencompass")).toEqual([286, 515, 456, 742]);
  });
});

describe("normalizeAnswer", () => {
  it.each([
    ["The Eiffel-Tower!", "eiffel tower"],
    ["  a  cat ", "cat"],
    ["U.S.", "us"],
    ["Don't", "dont"],
    ["３．１４", "3.14"],
    ["1,234,567.", "1234567"],
    ["-5", "-5"],
    ["well-known", "well known"],
    ["北京。", "北京"],
    ["“北京”，中国", "北京 中国"],
  ])("takes %j as %j", (text, normal) => {
    expect(normalizeAnswer(text)).toBe(normal);
  });

  it("finds the first line that holds something", () => {
    expect(firstLine("\n  998 \n12")).toBe("998");
    expect(firstLine(" \n")).toBe("");
  });
});
