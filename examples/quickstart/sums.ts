/**
 * The quickstart's world: sums of two numbers of one to three digits, as plain text in English and Chinese, and as questions with
 * options. Everything is a pure function of a seed.
 */

/** A small deterministic generator: 32-bit xorshift-multiply (Vigna's splitmix). */
export function createRandom(seed: number): {
  next(): number;
  below(n: number): number;
  pick<T>(list: readonly T[]): T;
} {
  let state = BigInt(seed);
  const next = (): number => {
    state = BigInt.asUintN(64, state + 0x9e3779b97f4a7c15n);
    let z = state;
    z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
    z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
    return Number((z ^ (z >> 31n)) >> 11n) / 2 ** 53;
  };
  const below = (n: number): number => Math.floor(next() * n);
  return { next, below, pick: (list) => list[below(list.length)]! };
}

export type Random = ReturnType<typeof createRandom>;

/** A sum that the base model never sees in training: one in twenty, chosen by the operands alone. */
export function isHeldOut(a: number, b: number): boolean {
  return Math.imul(a * 1009 + b, 2654435761) >>> 0 < 2 ** 32 / 20;
}

/** Two operands; three-digit ones are the most common, short ones stay in practice. */
function operands(random: Random, heldOut: boolean): [number, number] {
  for (;;) {
    const limit = (): number => [10, 100, 100, 1000, 1000, 1000, 1000][random.below(7)]!;
    const a = random.below(limit());
    const b = random.below(limit());
    if (isHeldOut(a, b) === heldOut) return [a, b];
  }
}

const english = [
  (a: number, b: number) => [`${a}+${b}=`, `${a + b}`],
  (a: number, b: number) => [`${a} plus ${b} is`, ` ${a + b}.`],
  (a: number, b: number) => [`The sum of ${a} and ${b} is`, ` ${a + b}.`],
  (a: number, b: number) => [`Tom has ${a} apples and buys ${b} more. Now he has`, ` ${a + b} apples.`],
] as const;

const chinese = [
  (a: number, b: number) => [`${a}+${b}=`, `${a + b}`],
  (a: number, b: number) => [`${a}加${b}等于`, `${a + b}。`],
  (a: number, b: number) => [`${a}与${b}的和是`, `${a + b}。`],
  (a: number, b: number) => [`小明有${a}个苹果，又买了${b}个，现在有`, `${a + b}个苹果。`],
] as const;

/** A wrong result that looks right: a digit off, or a carry forgotten. */
function wrongResult(random: Random, sum: number): number {
  for (;;) {
    const wrong = sum + random.pick([-110, -100, -90, -20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20, 90, 100, 110]);
    if (wrong >= 0 && wrong !== sum) return wrong;
  }
}

/** A line of plain text: what is given and what follows from it. */
export interface PlainLine {
  prompt: string;
  completion: string;
}

/** A sum in one of the forms above, or (one line in eight) a statement about one that is judged right or wrong. */
export function plainLine(random: Random, heldOut = false): PlainLine {
  const [a, b] = operands(random, heldOut);
  if (random.below(8) === 0) {
    const right = random.below(2) === 0;
    const said = right ? a + b : wrongResult(random, a + b);
    return random.below(2) === 0
      ? { prompt: `${a}+${b}=${said}，`, completion: right ? "对。" : `错，是${a + b}。` }
      : { prompt: `${a}+${b}=${said},`, completion: right ? " right." : ` wrong, it is ${a + b}.` };
  }
  // Bare sums are half of the lines: they teach most per token.
  const form = random.below(2) === 0 ? english[0] : random.pick(random.below(2) === 0 ? english : chinese);
  const [prompt, completion] = form(a, b);
  return { prompt: prompt!, completion: completion! };
}

/** Lettered numbers, each on a line of its own. */
export interface List {
  text: string;
  entries: readonly { letter: string; number: string }[];
}

/** Numbers under letters, all different. */
export function lettered(numbers: readonly number[]): List {
  const entries = numbers.map((number, i) => ({ letter: "ABCDEFGH"[i]!, number: String(number) }));
  return { text: entries.map(({ letter, number }) => `${letter}. ${number}`).join("\n"), entries };
}

/** Two to eight numbers below `limit`; half of the lists with large numbers hold such that differ in a digit or a carry only. */
export function randomList(random: Random, limit: number): List {
  const near = limit > 100 && random.below(2) === 0;
  const count = 2 + random.below(7);
  const first = random.below(limit);
  const numbers = new Set([first]);
  while (numbers.size < count)
    numbers.add(near && random.below(3) > 0 ? wrongResult(random, first) : random.below(limit));
  return lettered(shuffled(random, [...numbers]));
}

function shuffled<T>(random: Random, list: T[]): T[] {
  for (let i = list.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [list[i], list[j]] = [list[j]!, list[i]!];
  }
  return list;
}

/** A question with three options; `answer` is the letter of the right one. */
export interface Question {
  question: string;
  A: string;
  B: string;
  C: string;
  answer: "A" | "B" | "C";
}

/** Operands have two or three digits; both wrong options look right. */
export function question(random: Random, heldOut: boolean): Question {
  let a: number;
  let b: number;
  do [a, b] = operands(random, heldOut);
  while (a < 10 || b < 10);
  const sum = a + b;
  const wrong = new Set<number>();
  while (wrong.size < 2) wrong.add(wrongResult(random, sum));
  const options = shuffled(random, [sum, ...wrong].map(String));
  const [A, B, C] = options as [string, string, string];
  return { question: `${a}+${b}=`, A, B, C, answer: (["A", "B", "C"] as const)[options.indexOf(String(sum))]! };
}

/** How a question is put to a chat model. */
export function questionText(q: Question): string {
  return `${q.question}\nA. ${q.A}\nB. ${q.B}\nC. ${q.C}`;
}

/** The right answer: the sum, and the letter it stands at. */
export function answerText(q: Question): string {
  return `${q[q.answer]} is ${q.answer}.`;
}
