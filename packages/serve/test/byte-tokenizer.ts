import { UnsupportedError } from "@llm/core";
import type {
  ChatMessage,
  ChatTemplateOptions,
  DecodeOptions,
  DecodeStream,
  EncodeOptions,
  TokenIds,
  Tokenizer,
} from "@llm/models";

const specials = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|tools|>"];

/** One token a byte, and a few special tokens: trivial, exact, and enough to split characters over tokens. */
export class ByteTokenizer implements Tokenizer {
  readonly vocabSize = 256 + specials.length;
  readonly bosTokenId = 256;
  readonly eosTokenId = 257;
  readonly padTokenId = undefined;
  readonly unkTokenId = undefined;
  readonly specialTokens: ReadonlyMap<string, number> = new Map(specials.map((text, i) => [text, 256 + i]));
  readonly chatTemplate: string | undefined;

  constructor(hasChatTemplate = true) {
    this.chatTemplate = hasChatTemplate ? "built in" : undefined;
  }

  encode(text: string, { addSpecialTokens = true, parseSpecial = true }: EncodeOptions = {}): TokenIds {
    const ids: number[] = addSpecialTokens ? [this.bosTokenId] : [];
    for (const piece of parseSpecial ? text.split(/(<\|\w+\|>)/) : [text]) {
      const special = parseSpecial ? this.specialTokens.get(piece) : undefined;
      if (special !== undefined) ids.push(special);
      else ids.push(...Buffer.from(piece, "utf8"));
    }
    return Int32Array.from(ids);
  }

  decode(ids: ArrayLike<number>, { skipSpecialTokens = false }: DecodeOptions = {}): string {
    return Buffer.concat(
      Array.from(ids, (id) => (id >= 256 && skipSpecialTokens ? new Uint8Array() : this.tokenBytes(id))),
    ).toString("utf8");
  }

  decodeStream({ skipSpecialTokens = false }: DecodeOptions = {}): DecodeStream {
    const decoder = new TextDecoder();
    return {
      push: (id) => (id >= 256 && skipSpecialTokens ? "" : decoder.decode(this.tokenBytes(id), { stream: true })),
      end: () => decoder.decode(),
    };
  }

  idToToken(id: number): string | undefined {
    return id < 256 ? `<0x${id.toString(16)}>` : specials[id - 256];
  }

  tokenToId(token: string): number | undefined {
    return this.specialTokens.get(token);
  }

  tokenBytes(id: number): Uint8Array {
    return id < 256 ? Uint8Array.of(id) : new TextEncoder().encode(specials[id - 256]);
  }

  applyChatTemplate(messages: ChatMessage[], options: ChatTemplateOptions = {}): string {
    if (this.chatTemplate === undefined)
      throw new UnsupportedError("[applyChatTemplate] expected a chat template, got none");
    const tools = options.tools === undefined ? "" : `<|tools|>${JSON.stringify(options.tools)}<|end|>`;
    const turns = messages
      .map(({ role, content, tool_calls }) => `<|${role}|>${content ?? JSON.stringify(tool_calls)}<|end|>`)
      .join("");
    return tools + turns + (options.addGenerationPrompt === true ? "<|assistant|>" : "");
  }

  save(): Promise<void> {
    return Promise.reject(new UnsupportedError("[ByteTokenizer.save] there is nothing to save"));
  }
}
