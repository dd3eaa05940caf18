import type { ChatMessage, ChatTemplateOptions, TokenIds, Tokenizer } from "./types.js";

/** Roles whose text comes from outside: it is content, whatever it spells. */
const outsideRoles: ReadonlySet<string> = new Set(["user", "tool"]);

/**
 * A conversation → token ids by the model's chat template, with a generation prompt unless told otherwise.
 *
 * Text of users and tools never becomes control tokens: where it spells a special token (`<|im_end|>`), the template is rendered with
 * a placeholder there, and that stretch is encoded as plain text. (SentencePiece tokenizers see an added space around such a stretch.)
 * @throws {UnsupportedError} no template  @throws {FormatError} the template refuses the messages
 */
export function encodeChat(
  tokenizer: Tokenizer,
  messages: readonly ChatMessage[],
  options: ChatTemplateOptions = {},
): TokenIds {
  const guard = new SpecialTokenGuard(tokenizer);
  const guarded = messages.map((message) =>
    outsideRoles.has(message.role) && message.content
      ? { ...message, content: guard.protect(message.content) }
      : message,
  );
  return guard.encode(tokenizer.applyChatTemplate(guarded, { addGenerationPrompt: true, ...options }));
}

/** Keeps special tokens that somebody wrote in a text from being recognised. */
class SpecialTokenGuard {
  private readonly tokenizer: Tokenizer;
  private readonly specials: RegExp | undefined;
  /** Unguessable, so that no text can imitate a placeholder. */
  private readonly nonce = crypto.randomUUID().replaceAll("-", "");
  private readonly texts: string[] = [];

  constructor(tokenizer: Tokenizer) {
    this.tokenizer = tokenizer;
    const specials = [...tokenizer.specialTokens.keys()]
      .filter((text) => text !== "")
      .sort((a, b) => b.length - a.length);
    if (specials.length > 0)
      this.specials = new RegExp(specials.map((text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&")).join("|"), "g");
  }

  /** The text with a placeholder for each special token. */
  protect(text: string): string {
    if (!this.specials) return text;
    return text.replace(this.specials, (special) => `\u27e8${this.nonce}${this.texts.push(special) - 1}\u27e9`);
  }

  /** Ids of a rendered text: placeholders as plain text, the rest with its special tokens. */
  encode(text: string): TokenIds {
    if (this.texts.length === 0) return this.tokenizer.encode(text, { addSpecialTokens: false });
    const pieces = text.split(new RegExp(`\u27e8${this.nonce}(\\d+)\u27e9`));
    const ids = pieces.flatMap((piece, i) => {
      const literal = i % 2 === 1;
      return [
        ...this.tokenizer.encode(literal ? this.texts[Number(piece)]! : piece, {
          addSpecialTokens: false,
          parseSpecial: !literal,
        }),
      ];
    });
    return Int32Array.from(ids);
  }
}
