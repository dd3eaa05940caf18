/**
 * GPT-2's reversible spelling of bytes as printable characters: printable Latin-1 bytes stand for themselves, the other 68
 * take U+0100 onwards, so that a space is `Ġ` and a newline `Ċ`.
 * @see https://github.com/openai/gpt-2/blob/master/src/encoder.py (bytes_to_unicode)
 */
const byteToCode = new Uint16Array(256);
const codeToByteTable = new Int16Array(0x144).fill(-1);
{
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
    const code = printable ? byte : next++;
    byteToCode[byte] = code;
    codeToByteTable[code] = byte;
  }
}

const encoder = new TextEncoder();

/** The character that spells a byte. */
export function byteChar(byte: number): string {
  return String.fromCharCode(byteToCode[byte]!);
}

/** Spells bytes as a byte-level token. */
export function spellBytes(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byteToCode[byte]!);
  return text;
}

/** Spells the UTF-8 bytes of a text. */
export function spellText(text: string): string {
  return spellBytes(encoder.encode(text));
}

/** Bytes of a byte-level token, or undefined when a character of it spells no byte. */
export function unspell(token: string): Uint8Array | undefined {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const code = token.charCodeAt(i);
    const byte = code < codeToByteTable.length ? codeToByteTable[code]! : -1;
    if (byte < 0) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}

/** `<0x0A>` → 10; -1 for any other text. */
export function byteOfFallbackToken(token: string): number {
  if (token.length !== 6 || !token.startsWith("<0x") || token[5] !== ">") return -1;
  const hex = token.slice(3, 5);
  return /^[0-9A-Fa-f]{2}$/.test(hex) ? Number.parseInt(hex, 16) : -1;
}

/** 10 → `<0x0A>`. */
export function fallbackToken(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}
