import { FormatError, LlmError } from "@llm/core";
import type { Tokenizer } from "@llm/models";
import type { CompletionExample, Example } from "./example.js";
import { type RenderedDocument, type RenderOptions, renderChat } from "./render-chat.js";
import { isRowFault, rowFault } from "./row-fault.js";
import { alignTokens } from "./token-offsets.js";

/** Token ids of a document and how much each is learned as something to predict (0 = not at all). */
export interface EncodedDocument {
  ids: Int32Array;
  /** Same length as `ids`. `lossWeights[0]` never counts: nothing stands before the first token to predict it from. */
  lossWeights: Float32Array;
}

export interface TokenizeOptions extends RenderOptions {
  endOfTurn: "template" | "append-eos";
}

/** What happened on the way, for the data set's report. */
export interface TokenizeCounts {
  /** Conversations that a rewriting template turned into several documents, and how many more that made. */
  splitConversations: number;
  extraDocuments: number;
  /** Edges of learned text that lie inside a token; such a token is not learned. */
  mergedBoundaries: number;
  /** Turns that the template leaves open and that were closed with the end token. */
  appendedEos: number;
}

/**
 * Encodes one example.
 * @throws {FormatError} a fault of the row, or (not a row's fault) a template that cannot teach the model to stop, a mask that
 *   covers everything, a begin token written twice
 */
export function tokenizeExample(example: Example, options: TokenizeOptions, counts: TokenizeCounts): EncodedDocument[] {
  if (example.kind === "text") return [encodePlain(example.text, undefined, options, counts)];
  if (example.kind === "completion")
    return [encodePlain(example.prompt + example.completion, example, options, counts)];
  let rendered: RenderedDocument[];
  try {
    rendered = renderChat(example, options);
  } catch (error) {
    // what a template refuses (roles that do not alternate) is wrong with the row; a missing template is not
    if (isRowFault(error) || !LlmError.isInstance(error)) throw error;
    if (
      error.code === "UNSUPPORTED" ||
      (error.code === "OPTIONS" && error.data["reason"] === undefined) ||
      error.data["kind"] !== undefined
    )
      throw error;
    throw rowFault("messages", "a conversation that the chat template takes", error.message);
  }
  if (rendered.length > 1) {
    counts.splitConversations += 1;
    counts.extraDocuments += rendered.length - 1;
  }
  return rendered.map((document) => encodeRendered(document, options, counts));
}

function encodeRendered(document: RenderedDocument, options: TokenizeOptions, counts: TokenizeCounts): EncodedDocument {
  const { tokenizer } = options;
  let ids = tokenizer.encode(document.text, { addSpecialTokens: false });
  const { bosTokenId } = tokenizer;
  if (bosTokenId !== undefined && ids[0] === bosTokenId && ids[1] === bosTokenId)
    throw new FormatError(
      "[loadDataset] expected one begin token at the start of a conversation, got two: the chat template and the tokenizer both write it",
      { kind: "double-bos" },
    );
  let weights = new Float32Array(ids.length).fill(document.weight);
  const alignment = alignTokens(tokenizer, document.text, ids);
  const stops = stopTokens(tokenizer);
  for (const span of document.spans) {
    const from = alignment.boundary(span.start);
    const to = alignment.boundary(span.end);
    if (from === undefined || to === undefined)
      throw new FormatError(
        `[loadDataset] expected the tokens of a conversation's beginning to begin the tokens of the whole, but message ${span.message} merges with its neighbour; ` +
          `use a template that separates turns by special tokens`,
        { kind: "token-prefix", message: span.message },
      );
    counts.mergedBoundaries += Number(!from.exact) + Number(!to.exact);
    let end = to.exact ? to.next : to.next - 1;
    if (span.assistant && span.weight > 0) {
      const stop = endOfTurn(tokenizer, ids, from.next, end, stops);
      const isLast = to.next === ids.length;
      if (stop !== undefined) end = stop + 1;
      else if (options.endOfTurn === "template") throw openTurn(document.text.slice(span.start, span.end));
      else if (isLast) {
        if (tokenizer.eosTokenId === undefined)
          throw new FormatError(
            '[loadDataset] endOfTurn "append-eos": expected a tokenizer with an end token, got one without',
            { kind: "end-of-turn" },
          );
        const closed = new Int32Array(ids.length + 1);
        closed.set(ids);
        closed[ids.length] = tokenizer.eosTokenId;
        const closedWeights = new Float32Array(closed.length);
        closedWeights.set(weights);
        [ids, weights] = [closed, closedWeights];
        end = ids.length;
        counts.appendedEos += 1;
      }
    }
    weights.fill(span.weight, from.next, end);
  }
  if (document.weight === 0 && weights.every((weight) => weight > 0))
    throw new FormatError(
      "[loadDataset] the loss mask covers every token, prompts included: the template does not tell turns apart. " +
        'Use a chat template with a generation prompt, or ask for this with trainOn: "all"',
      { kind: "degenerate-mask" },
    );
  if (!isLearnable(weights))
    throw rowFault("messages", "at least one token to learn", "a loss mask that covers nothing");
  return { ids, lossWeights: weights };
}

/** True when some token after the first is learned. */
export function isLearnable(weights: Float32Array): boolean {
  for (let index = 1; index < weights.length; index += 1) if ((weights[index] as number) > 0) return true;
  return false;
}

/** Tokens that may end a turn: every special token but the one that begins a text. */
function stopTokens(tokenizer: Tokenizer): Set<number> {
  const stops = new Set(tokenizer.specialTokens.values());
  if (tokenizer.bosTokenId !== undefined) stops.delete(tokenizer.bosTokenId);
  if (tokenizer.eosTokenId !== undefined) stops.add(tokenizer.eosTokenId);
  return stops;
}

/**
 * Index of the token that ends the turn in [start, end): the last special token, if only white space follows it; else the
 * special token right after it, which opens the next turn (GLM's `<|user|>`) and is where generation stops.
 */
function endOfTurn(
  tokenizer: Tokenizer,
  ids: Int32Array,
  start: number,
  end: number,
  stops: ReadonlySet<number>,
): number | undefined {
  let last = end - 1;
  while (last >= start && !stops.has(ids[last] as number)) last -= 1;
  if (last >= start && tokenizer.decode(ids.subarray(last + 1, end)).trim() === "") return last;
  return end < ids.length && stops.has(ids[end] as number) ? end : undefined;
}

function openTurn(turn: string): FormatError {
  return new FormatError(
    `[loadDataset] the chat template must end the assistant's turn with a special token of the tokenizer, got ${JSON.stringify(turn.slice(-40))}: ` +
      `the model would never learn to stop. Use another \`template\`, or endOfTurn: "append-eos" to close conversations with the end token`,
    { kind: "end-of-turn" },
  );
}

/** Begin token, text, end token; the text is learned from where the completion begins. */
function encodePlain(
  text: string,
  completion: CompletionExample | undefined,
  options: TokenizeOptions,
  counts: TokenizeCounts,
): EncodedDocument {
  const { tokenizer } = options;
  const encoded = tokenizer.encode(text, { addSpecialTokens: false });
  const { bosTokenId: bos, eosTokenId: eos } = tokenizer;
  // the begin token is written where the tokenizer's own post-processor writes it
  const begins = bos !== undefined && tokenizer.encode("", { addSpecialTokens: true })[0] === bos && encoded[0] !== bos;
  const ends = eos !== undefined && encoded.at(-1) !== eos;
  const lead = begins ? 1 : 0;
  const ids = new Int32Array(lead + encoded.length + (ends ? 1 : 0));
  if (begins) ids[0] = bos;
  ids.set(encoded, lead);
  if (ends) ids[ids.length - 1] = eos;
  const lossWeights = new Float32Array(ids.length);
  let start = 0;
  if (completion !== undefined && options.trainOn !== "all" && completion.prompt !== "") {
    const boundary = alignTokens(tokenizer, text, encoded).boundary(completion.prompt.length);
    if (boundary === undefined)
      throw rowFault(
        "completion",
        "a text whose tokens do not merge with the prompt's",
        JSON.stringify(completion.completion.slice(0, 40)),
      );
    counts.mergedBoundaries += Number(!boundary.exact);
    start = lead + boundary.next;
  }
  lossWeights.fill(1, start);
  if (!isLearnable(lossWeights))
    throw rowFault(completion ? "completion" : "text", "at least two tokens", `${ids.length}`);
  return { ids, lossWeights };
}
