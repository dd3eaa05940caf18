import type { AddedToken, BpeSpec, TokenizerSpec, UnigramSpec } from "./spec.js";

/** The text of a tokenizer.json that Hugging Face tokenizers loads to the same pipeline. */
export function tokenizerJsonText(spec: TokenizerSpec): string {
  const tokens = placeAddedTokens(spec);
  const shell = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: spec.addedTokens
      .slice()
      .sort((a, b) => a.id - b.id)
      .map((token) => ({ id: token.id, ...flags(token) })),
    normalizer: spec.normalizer,
    pre_tokenizer: spec.preTokenizer,
    post_processor: spec.postProcessor,
    decoder: spec.decoder,
  };
  const head = JSON.stringify(shell, null, 2);
  const text = spec.model.type === "BPE" ? bpeText(spec.model, tokens) : unigramText(spec.model, tokens);
  return `${head.slice(0, -2)},\n  "model": ${text}\n}\n`;
}

/** The text of the tokenizer_config.json beside it. */
export function tokenizerConfigText(spec: TokenizerSpec): string {
  const { config } = spec;
  const templates = [...config.chatTemplates];
  const chatTemplate =
    templates.length === 0
      ? undefined
      : templates.length === 1 && templates[0]![0] === "default"
        ? templates[0]![1]
        : templates.map(([name, template]) => ({ name, template }));
  const added = spec.addedTokens.slice().sort((a, b) => a.id - b.id);
  return `${JSON.stringify(
    {
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
      ...config.rest,
      added_tokens_decoder: Object.fromEntries(added.map((token) => [token.id, flags(token)])),
      bos_token: config.bosToken ?? null,
      eos_token: config.eosToken ?? null,
      pad_token: config.padToken ?? null,
      unk_token: config.unkToken ?? null,
      ...(chatTemplate === undefined ? {} : { chat_template: chatTemplate }),
    },
    null,
    2,
  )}\n`;
}

function flags(token: AddedToken): object {
  return {
    content: token.content,
    single_word: token.singleWord,
    lstrip: token.lstrip,
    rstrip: token.rstrip,
    normalized: token.normalized,
    special: token.special,
  };
}

/**
 * Tokens of the model's vocabulary in the file. The reader numbers added tokens that are not among them one after
 * another from its size on; where that gives other ids than ours, they go into the vocabulary.
 */
function placeAddedTokens(spec: TokenizerSpec): (string | undefined)[] {
  const tokens = spec.model.tokens.slice();
  const own = new Set(tokens);
  const size = tokens.filter((token) => token !== undefined).length;
  const extra = spec.addedTokens.filter((token) => !own.has(token.content)).sort((a, b) => a.id - b.id);
  if (extra.some((token, index) => token.id !== size + index)) {
    for (const token of extra) tokens[token.id] = token.content;
  }
  return tokens;
}

function bpeText(spec: BpeSpec, tokens: (string | undefined)[]): string {
  const vocab: string[] = [];
  tokens.forEach((token, id) => {
    if (token !== undefined) vocab.push(`      ${JSON.stringify(token)}: ${id}`);
  });
  const { left, right } = spec.merges;
  const merges = Array.from(
    left,
    (id, index) => `      ${JSON.stringify([spec.tokens[id], spec.tokens[right[index]!]])}`,
  );
  const head = JSON.stringify(
    {
      type: "BPE",
      dropout: null,
      unk_token: spec.unkToken ?? null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: spec.fuseUnk,
      byte_fallback: spec.byteFallback,
      ignore_merges: spec.ignoreMerges,
    },
    null,
    2,
  ).replaceAll("\n", "\n  ");
  return `${head.slice(0, -4)},\n    "vocab": {\n${vocab.join(",\n")}\n    },\n    "merges": [\n${merges.join(",\n")}\n    ]\n  }`;
}

function unigramText(spec: UnigramSpec, tokens: (string | undefined)[]): string {
  const vocab = Array.from(
    tokens,
    (token, id) => `      ${JSON.stringify([token ?? `<hole_${id}>`, spec.scores[id] ?? 0])}`,
  );
  const head = JSON.stringify(
    { type: "Unigram", unk_id: spec.unkId ?? null, byte_fallback: spec.byteFallback },
    null,
    2,
  );
  return `${head.replaceAll("\n", "\n  ").slice(0, -4)},\n    "vocab": [\n${vocab.join(",\n")}\n    ]\n  }`;
}
