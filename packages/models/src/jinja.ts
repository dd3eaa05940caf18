import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";

/** A parsed template. */
export type JinjaProgram = ReturnType<typeof parse>;

/** Parses Jinja source with blocks trimmed, as transformers does. Throws the engine's own errors. */
export function parseJinja(source: string): JinjaProgram {
  return parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
}

/** Renders a parsed template. Throws the engine's own errors and those of the functions among the variables. */
export function renderJinja(program: JinjaProgram, variables: Readonly<Record<string, unknown>>): string {
  const environment = new Environment();
  for (const [name, value] of Object.entries(variables)) environment.set(name, value);
  return String(new PythonInterpreter(environment).run(program).value);
}

interface Value {
  type: string;
  value: unknown;
}

interface Node {
  type: string;
  [key: string]: unknown;
}

/** The engine's interpreter with the methods that are private in its declarations. */
const OpenInterpreter = Interpreter as unknown as new (environment: Environment) => {
  run(program: JinjaProgram): Value;
  evaluate(node: Node | undefined, environment: Environment): Value;
  evaluateBlock(statements: Node[], environment: Environment): Value;
  evaluateFor(node: Node, environment: Environment): Value;
  applyFilter(operand: Value, filter: Node, environment: Environment): Value;
};

/** A `break` or `continue` on its way to its loop, with the text that was written before it. */
interface Control {
  kind: "Break" | "Continue";
  text: string;
}

/** Statements give no text of their own: null is their "nothing", not None. */
const statements = new Set([
  "Set",
  "If",
  "For",
  "Macro",
  "Comment",
  "Break",
  "Continue",
  "CallStatement",
  "FilterStatement",
  "Program",
]);

/**
 * The engine, made to agree with Python's where templates of real models meet the difference: `{{ x }}`, `~` and `| string`
 * write values as `str()` does (True, None, {'a': 1}), text written before `break` and `continue` is kept, and an undefined
 * value has the empty text.
 */
class PythonInterpreter extends OpenInterpreter {
  readonly #text: new (value: string) => Value;
  /** Per running loop, innermost last: its body, and whether it was broken out of. */
  readonly #loops: { body: Node[]; broken: boolean }[] = [];
  readonly #control = new WeakMap<object, Control>();

  constructor(environment: Environment) {
    super(environment);
    this.#text = new Environment().set("text", "").constructor as new (value: string) => Value;
  }

  override evaluate(node: Node | undefined, environment: Environment): Value {
    if (node?.type === "BinaryExpression" && (node["operator"] as Node)["value"] === "~") {
      const left = this.evaluate(node["left"] as Node, environment);
      const right = this.evaluate(node["right"] as Node, environment);
      return new this.#text(str(left) + str(right));
    }
    if (node?.type !== "Break" && node?.type !== "Continue") return super.evaluate(node, environment);
    try {
      return super.evaluate(node, environment);
    } catch (error) {
      this.#control.set(error as object, { kind: node.type, text: "" });
      throw error;
    }
  }

  override evaluateBlock(block: Node[], environment: Environment): Value {
    const loop = this.#loops.at(-1);
    const turn = loop?.body === block ? loop : undefined;
    // The engine ends the loop on its own signal; the turn that broke has given its text already.
    if (turn?.broken === true) super.evaluate({ type: "Break" }, environment);
    let text = "";
    for (const node of block) {
      let value: Value;
      try {
        value = this.evaluate(node, environment);
      } catch (error) {
        const control = this.#control.get(error as object);
        if (control === undefined) throw error;
        control.text = text + control.text;
        // The engine would drop the text of this turn: end the turn here, and the loop before the next one.
        if (turn === undefined) throw error;
        turn.broken = control.kind === "Break";
        return new this.#text(control.text);
      }
      if (!statements.has(node.type)) text += str(value);
      else if (value.type !== "NullValue" && value.type !== "UndefinedValue") text += String(value.value);
    }
    return new this.#text(text);
  }

  override evaluateFor(node: Node, environment: Environment): Value {
    this.#loops.push({ body: node["body"] as Node[], broken: false });
    try {
      return super.evaluateFor(node, environment);
    } finally {
      this.#loops.pop();
    }
  }

  override applyFilter(operand: Value, filter: Node, environment: Environment): Value {
    if (filter.type === "Identifier" && filter["value"] === "string") return new this.#text(str(operand));
    const plainText = filter.type === "Identifier" && ["trim", "upper", "lower"].includes(String(filter["value"]));
    if (plainText && operand.type === "UndefinedValue") return new this.#text("");
    return super.applyFilter(operand, filter, environment);
  }
}

/** Python's str(). */
function str(value: Value): string {
  return value.type === "StringValue" ? (value.value as string) : value.type === "UndefinedValue" ? "" : repr(value);
}

/** Python's repr(). */
function repr(value: Value): string {
  switch (value.type) {
    case "NullValue":
      return "None";
    case "BooleanValue":
      return value.value === true ? "True" : "False";
    case "StringValue":
      return quoted(value.value as string);
    case "ArrayValue":
      return `[${(value.value as Value[]).map(repr).join(", ")}]`;
    case "TupleValue":
      return `(${(value.value as Value[]).map(repr).join(", ")}${(value.value as Value[]).length === 1 ? "," : ""})`;
    case "ObjectValue":
      return `{${Array.from(value.value as Map<string, Value>, ([key, entry]) => `${quoted(key)}: ${repr(entry)}`).join(", ")}}`;
    default:
      return String(value);
  }
}

function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escapes: Record<string, string> = {
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    [quote]: `\\${quote}`,
  };
  const body = text.replace(/[\\\n\r\t'"]|[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u00a0]/gu, (character) => {
    const known = escapes[character];
    if (known !== undefined || character === "'" || character === '"') return known ?? character;
    const code = character.codePointAt(0)!;
    const hex = code.toString(16);
    return code <= 0xff
      ? `\\x${hex.padStart(2, "0")}`
      : code <= 0xffff
        ? `\\u${hex.padStart(4, "0")}`
        : `\\U${hex.padStart(8, "0")}`;
  });
  return quote + body + quote;
}
