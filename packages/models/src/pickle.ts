/**
 * A reader of Python pickles that runs nothing: what a pickle may call is decided by the caller, by name, and everything
 * else is refused. It knows the opcodes that plain data needs (protocols 0 to 5, without out-of-band buffers).
 * @see https://github.com/python/cpython/blob/main/Lib/pickletools.py (the opcodes' definitions)
 */
import { FormatError } from "@llm/core";

/** A callable that the pickle may name. `call` gets the arguments that the pickle applies it to. */
export class PickleGlobal {
  readonly name: string;
  readonly call: ((args: unknown[]) => unknown) | undefined;

  constructor(name: string, call?: (args: unknown[]) => unknown) {
    this.name = name;
    this.call = call;
  }
}

/** A tuple, where it matters that it is one; equal to an array otherwise. */
export class PickleTuple extends Array<unknown> {}

export interface UnpickleOptions {
  /** For messages. */
  file: string;
  /** What `module.name` stands for (a {@link PickleGlobal} or plain data); undefined = refused. */
  findGlobal: (module: string, name: string) => unknown;
  /** What a persistent id stands for. */
  findPersistent: (id: unknown) => unknown;
  /** Where the pickle begins in `bytes`. @default 0 */
  begin?: number;
}

const mark = Symbol("mark");

/**
 * Reads one pickle. dict and OrderedDict become Map, list and tuple become arrays, set becomes Set, None becomes null,
 * int a number or, beyond 2⁵³, a bigint.
 * @returns the value and where the pickle ends
 * @throws {FormatError} a global that is not allowed (named in `data.global`), an unknown opcode, or damage; `data.offset`
 */
export function unpickle(bytes: Uint8Array, options: UnpickleOptions): { value: unknown; end: number } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const stack: unknown[] = [];
  const memo = new Map<number, unknown>();
  let at = options.begin ?? 0;
  let opcodeAt = at;

  const fail = (message: string, data: Record<string, unknown> = {}): FormatError =>
    new FormatError(`[unpickle] ${options.file}: ${message} at byte ${opcodeAt} of the pickle`, {
      file: options.file,
      offset: opcodeAt,
      ...data,
    });
  const take = (count: number): number => {
    if (count < 0 || at + count > bytes.length)
      throw fail(`expected ${count} more bytes, got ${bytes.length - at} (cut off?)`);
    at += count;
    return at - count;
  };
  const u8 = (): number => view.getUint8(take(1));
  const u32 = (): number => view.getUint32(take(4), true);
  const u64 = (): number => Number(view.getBigUint64(take(8), true));
  const text = (length: number): string => {
    const begin = take(length);
    return new TextDecoder("utf-8").decode(bytes.subarray(begin, begin + length));
  };
  const latin1 = (length: number): string => {
    const begin = take(length);
    return Buffer.from(bytes.buffer, bytes.byteOffset + begin, length).toString("latin1");
  };
  const blob = (length: number): Uint8Array => {
    const begin = take(length);
    return bytes.slice(begin, begin + length);
  };
  const line = (): string => {
    const end = bytes.indexOf(10, at);
    if (end < 0) throw fail("expected a line");
    const result = text(end - at);
    at = end + 1;
    return result;
  };
  const pop = (): unknown => {
    if (stack.length === 0 || stack.at(-1) === mark) throw fail("the stack is empty");
    return stack.pop();
  };
  const top = (): unknown => {
    if (stack.length === 0 || stack.at(-1) === mark) throw fail("the stack is empty");
    return stack.at(-1);
  };
  const popMarked = (): unknown[] => {
    const begin = stack.lastIndexOf(mark);
    if (begin < 0) throw fail("expected a mark on the stack");
    return stack.splice(begin).slice(1);
  };
  const whole = (value: bigint): number | bigint =>
    value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
  const long = (length: number): number | bigint => {
    let value = 0n;
    const begin = take(length);
    for (let index = length - 1; index >= 0; index--) value = (value << 8n) | BigInt(bytes[begin + index]!);
    return whole(BigInt.asIntN(Math.max(length * 8, 1), value));
  };
  const parseWhole = (digits: string): number | bigint => {
    if (!/^[+-]?\d+L?$/.test(digits)) throw fail(`expected a whole number, got ${JSON.stringify(digits.slice(0, 50))}`);
    return whole(BigInt(digits.replace(/L$/, "").replace(/^\+/, "")));
  };
  const tuple = (items: unknown[]): PickleTuple => {
    const result = new PickleTuple();
    for (const item of items) result.push(item);
    return result;
  };
  const setItems = (target: unknown, items: unknown[]): void => {
    if (!(target instanceof Map) || items.length % 2 !== 0) throw fail("expected a dict and pairs");
    for (let index = 0; index < items.length; index += 2) target.set(items[index], items[index + 1]);
  };
  const append = (target: unknown, items: unknown[]): void => {
    if (!Array.isArray(target) || target instanceof PickleTuple) throw fail("expected a list");
    for (const item of items) target.push(item);
  };
  const find = (module: string, name: string): unknown => {
    const found = options.findGlobal(module, name);
    if (found === undefined) {
      throw fail(
        `refused: the file asks for ${module}.${name}, which is not on the list of what a checkpoint may name,`,
        { global: `${module}.${name}` },
      );
    }
    return found;
  };
  const apply = (callable: unknown, args: unknown): unknown => {
    if (!(callable instanceof PickleGlobal) || callable.call === undefined || !Array.isArray(args)) {
      throw fail(
        `refused: the file calls ${callable instanceof PickleGlobal ? callable.name : "something that is no function"}`,
      );
    }
    return callable.call([...(args as unknown[])]);
  };
  const recall = (index: number): unknown => {
    if (!memo.has(index)) throw fail(`memo ${index} is empty`);
    return memo.get(index);
  };

  for (;;) {
    opcodeAt = at;
    const opcode = u8();
    switch (opcode) {
      case 0x80: // PROTO
        if (u8() > 5) throw fail("expected a pickle of protocol 0 to 5");
        break;
      case 0x95: // FRAME
        take(8);
        break;
      case 0x2e: // STOP
        return { value: pop(), end: at };
      case 0x28: // MARK
        stack.push(mark);
        break;
      case 0x30: // POP
        if (stack.length === 0) throw fail("the stack is empty");
        stack.pop();
        break;
      case 0x31: // POP_MARK
        popMarked();
        break;
      case 0x32: // DUP
        stack.push(top());
        break;
      case 0x4e: // NONE
        stack.push(null);
        break;
      case 0x88: // NEWTRUE
        stack.push(true);
        break;
      case 0x89: // NEWFALSE
        stack.push(false);
        break;
      case 0x49: {
        // INT, whose 00 and 01 are the booleans
        const digits = line();
        stack.push(digits === "00" ? false : digits === "01" ? true : parseWhole(digits));
        break;
      }
      case 0x4c: // LONG
        stack.push(parseWhole(line()));
        break;
      case 0x46: {
        // FLOAT
        const digits = line();
        const value =
          { inf: Infinity, "-inf": -Infinity, nan: Number.NaN }[digits] ??
          (digits.trim() === "" ? undefined : Number(digits));
        if (value === undefined || (Number.isNaN(value) && digits !== "nan"))
          throw fail(`expected a number, got ${JSON.stringify(digits.slice(0, 50))}`);
        stack.push(value);
        break;
      }
      case 0x4a: // BININT
        stack.push(view.getInt32(take(4), true));
        break;
      case 0x4b: // BININT1
        stack.push(u8());
        break;
      case 0x4d: // BININT2
        stack.push(view.getUint16(take(2), true));
        break;
      case 0x8a: // LONG1
        stack.push(long(u8()));
        break;
      case 0x8b: {
        // LONG4
        const length = u32();
        if (length > 1 << 16) throw fail(`a whole number of ${length} bytes is too long`);
        stack.push(long(length));
        break;
      }
      case 0x47: // BINFLOAT
        stack.push(view.getFloat64(take(8), false));
        break;
      case 0x53: {
        // STRING: a Python literal; only plain ones
        const literal = /^(['"])([^\\]*)\1$/.exec(line());
        if (literal === null) throw fail("expected a string without escapes");
        stack.push(literal[2]);
        break;
      }
      case 0x54: // BINSTRING
        stack.push(latin1(u32()));
        break;
      case 0x55: // SHORT_BINSTRING
        stack.push(latin1(u8()));
        break;
      case 0x56: // UNICODE
        stack.push(
          line().replace(/\\u([0-9a-fA-F]{4})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16))),
        );
        break;
      case 0x58: // BINUNICODE
        stack.push(text(u32()));
        break;
      case 0x8c: // SHORT_BINUNICODE
        stack.push(text(u8()));
        break;
      case 0x8d: // BINUNICODE8
        stack.push(text(u64()));
        break;
      case 0x42: // BINBYTES
        stack.push(blob(u32()));
        break;
      case 0x43: // SHORT_BINBYTES
        stack.push(blob(u8()));
        break;
      case 0x8e: // BINBYTES8
      case 0x96: // BYTEARRAY8
        stack.push(blob(u64()));
        break;
      case 0x5d: // EMPTY_LIST
        stack.push([]);
        break;
      case 0x61: {
        // APPEND
        const item = pop();
        append(top(), [item]);
        break;
      }
      case 0x65: {
        // APPENDS
        const items = popMarked();
        append(top(), items);
        break;
      }
      case 0x6c: // LIST
        stack.push(popMarked());
        break;
      case 0x29: // EMPTY_TUPLE
        stack.push(tuple([]));
        break;
      case 0x74: // TUPLE
        stack.push(tuple(popMarked()));
        break;
      case 0x85: // TUPLE1
        stack.push(tuple([pop()]));
        break;
      case 0x86: // TUPLE2
        stack.push(tuple([pop(), pop()].reverse()));
        break;
      case 0x87: // TUPLE3
        stack.push(tuple([pop(), pop(), pop()].reverse()));
        break;
      case 0x7d: // EMPTY_DICT
        stack.push(new Map());
        break;
      case 0x64: {
        // DICT
        const target = new Map();
        setItems(target, popMarked());
        stack.push(target);
        break;
      }
      case 0x73: {
        // SETITEM
        const items = [pop(), pop()].reverse();
        setItems(top(), items);
        break;
      }
      case 0x75: {
        // SETITEMS
        const items = popMarked();
        setItems(top(), items);
        break;
      }
      case 0x8f: // EMPTY_SET
        stack.push(new Set());
        break;
      case 0x90: {
        // ADDITEMS
        const items = popMarked();
        const target = top();
        if (!(target instanceof Set)) throw fail("expected a set");
        for (const item of items) target.add(item);
        break;
      }
      case 0x91: // FROZENSET
        stack.push(new Set(popMarked()));
        break;
      case 0x63: // GLOBAL
        stack.push(find(line(), line()));
        break;
      case 0x93: {
        // STACK_GLOBAL
        const [name, module] = [pop(), pop()];
        if (typeof module !== "string" || typeof name !== "string")
          throw fail("expected the names of a module and a global");
        stack.push(find(module, name));
        break;
      }
      case 0x52: {
        // REDUCE
        const args = pop();
        stack.push(apply(pop(), args));
        break;
      }
      case 0x62: {
        // BUILD: attributes of an object. Only a dict may have some (torch keeps `_metadata` there); they are not data.
        pop();
        if (!(top() instanceof Map)) throw fail("refused: the file sets attributes of an object");
        break;
      }
      case 0x51: // BINPERSID
        stack.push(options.findPersistent(pop()));
        break;
      case 0x70: // PUT
        memo.set(Number(parseWhole(line())), top());
        break;
      case 0x71: // BINPUT
        memo.set(u8(), top());
        break;
      case 0x72: // LONG_BINPUT
        memo.set(u32(), top());
        break;
      case 0x94: // MEMOIZE
        memo.set(memo.size, top());
        break;
      case 0x67: // GET
        stack.push(recall(Number(parseWhole(line()))));
        break;
      case 0x68: // BINGET
        stack.push(recall(u8()));
        break;
      case 0x6a: // LONG_BINGET
        stack.push(recall(u32()));
        break;
      default:
        throw fail(
          `refused: opcode 0x${opcode.toString(16).padStart(2, "0")} (${JSON.stringify(String.fromCharCode(opcode))}) is not one that data needs,`,
          { opcode },
        );
    }
  }
}
