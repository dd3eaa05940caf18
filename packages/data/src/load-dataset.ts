import { FormatError, type LlmError, OptionsError, parseOptions } from "@llm/core";
import * as v from "valibot";
import { Dataset, type TokenDocument } from "./dataset.js";
import { detectFormat, renameColumns, resolveFormat } from "./detect-format.js";
import type { Example } from "./example.js";
import type { DataFormat } from "./formats/define-format.js";
import { text as textFormat } from "./formats/text.js";
import { mixSources } from "./mixing.js";
import {
  type DataSource,
  dataSourceSchema,
  type LoadDatasetOptions,
  loadDatasetSchema,
  type ResolvedDatasetOptions,
} from "./options.js";
import { type RawRow, readRows, rowsOf } from "./read-rows.js";
import { emptyCounts, type LoadCounts } from "./report.js";
import { faultAt, isRowFault, placeText, type RowPlace } from "./row-fault.js";
import { type EncodedDocument, isLearnable, tokenizeExample } from "./tokenize-example.js";

/**
 * Reads files of conversations or text, renders and encodes them, marks what is learned, and packs them.
 *
 * Conversations are rendered by the chat template; the ids are those of the rendered text, and of an assistant's turn exactly
 * what the model has to write is learned: its content and the token that ends the turn.
 *
 * @param source  path, `{path | rows, format?, columns?, weight?, name?}`, or a list of these
 * @throws {OptionsError} unknown option or format, weights without a mix that uses them
 * @throws {IoError} unreadable file
 * @throws {FormatError} a bad row (`data.file`, `line` or `index`, `key`, `expected`, `got`) unless `onBadRow: "skip"`; columns that fit
 *   no format or several (`data.candidates`); a mask that learns nothing or everything; a template that cannot be learned (`data.kind`)
 *
 * @example
 * const data = loadDataset("./train.jsonl", { tokenizer: model.tokenizer, maxTokens: 2048 });
 * for (const batch of data.batches({ batchSize: 4, epochs: 3 })) step(batch);
 */
export function loadDataset(
  source: string | DataSource | readonly (string | DataSource)[],
  options: LoadDatasetOptions,
): Dataset {
  const parsed = parseOptions(loadDatasetSchema, options, "loadDataset");
  const sources = (Array.isArray(source) ? (source as (string | DataSource)[]) : [source as string | DataSource]).map(
    (item) => parseOptions(dataSourceSchema, typeof item === "string" ? { path: item } : item, "loadDataset"),
  );
  if (sources.length === 0) throw new OptionsError("[loadDataset] expected at least one source, got none");
  if (parsed.mix === "concat" && sources.some((item) => item.weight !== undefined))
    throw new OptionsError(
      '[loadDataset] weight: has no effect with mix "concat"; set mix to "interleave-under" or "interleave-over"',
    );
  if (parsed.mix !== "concat" && sources.length < 2)
    throw new OptionsError(`[loadDataset] mix "${parsed.mix}": expected at least two sources, got ${sources.length}`);

  const counts = emptyCounts();
  const loaded = sources.map((item, index) => loadSource(item, index, parsed, counts));
  const empty = loaded.findIndex((documents) => documents.length === 0);
  if (empty >= 0) {
    const { name, rejected } = counts.sources[empty] as LoadCounts["sources"][number];
    throw new FormatError(
      `[loadDataset] ${name}: expected at least one document to learn from, got none (${rejected} rows rejected` +
        `${counts.rejected[0] ? `, the first because of ${counts.rejected[0].reason}` : ""}; in all, ${counts.dropped.documents} documents dropped as overlong, ` +
        `${counts.nothingLeft} with nothing left to learn after truncation to maxTokens = ${parsed.maxTokens})`,
      {
        file: name,
        rejected: counts.rejected,
        dropped: counts.dropped.documents,
        nothingLeft: counts.nothingLeft,
        kind: "empty",
      },
    );
  }
  const mixed = mixSources(
    loaded.map((documents) => documents.length),
    sources.map((item) => item.weight ?? 1),
    parsed.mix,
    parsed.seed,
  );
  return new Dataset(
    mixed.map(({ source: from, index }) => (loaded[from] as TokenDocument[])[index] as TokenDocument),
    parsed,
    counts,
  );
}

/** Reads the examples of a source without encoding them: what evaluation, distillation or a look at the data needs. */
export function loadExamples(
  source: string | DataSource,
  options: { onBadRow?: "error" | "skip" } = {},
): { examples: Example[]; format: DataFormat; rejected: LoadCounts["rejected"] } {
  const item = parseOptions(dataSourceSchema, typeof source === "string" ? { path: source } : source, "loadExamples");
  const counts = emptyCounts();
  const examples: Example[] = [];
  const { format } = eachExample(
    item,
    {},
    options.onBadRow ?? "error",
    counts,
    (example) => void examples.push(example),
  );
  return { examples, format, rejected: counts.rejected };
}

type ParsedSource = v.InferOutput<typeof dataSourceSchema>;

function eachExample(
  source: ParsedSource,
  defaults: { format?: string | DataFormat | undefined; columns?: Record<string, string> | undefined },
  onBadRow: "error" | "skip",
  counts: LoadCounts,
  use: (example: Example, place: RowPlace) => void,
): { name: string; format: DataFormat; rows: number } {
  if ((source.path === undefined) === (source.rows === undefined))
    throw new OptionsError(
      `[loadDataset] source: expected path or rows, got ${source.path === undefined ? "neither" : "both"}`,
    );
  const name = source.name ?? source.path ?? "rows";
  if (source.separator !== undefined && !/\.txt(\.gz)?$/i.test(source.path ?? ""))
    throw new OptionsError(`[loadDataset] ${name}: separator is for .txt files only`);
  const rows: RawRow[] =
    source.path === undefined ? rowsOf(source.rows as unknown[]) : readRows(source.path, source.separator);
  const columns = source.columns ?? defaults.columns;
  const given = source.format ?? defaults.format ?? (/\.txt(\.gz)?$/i.test(source.path ?? "") ? textFormat : undefined);
  let format = given === undefined ? undefined : resolveFormat(given, columns);
  for (const row of rows) {
    const place: RowPlace = { source: name, index: row.index, ...(row.line === undefined ? {} : { line: row.line }) };
    try {
      if (row.fault !== undefined) throw row.fault;
      const value = row.value as Readonly<Record<string, unknown>>;
      format ??= detectFormat(value, columns, name);
      use(format.parse(renameColumns(value, columns)), place);
    } catch (error) {
      if (!isRowFault(error)) throw withPlace(error, place);
      const fault = faultAt(inFileTerms(error, columns), place);
      if (onBadRow === "error") throw fault;
      const key = fault.data["key"];
      counts.rejected.push({
        file: name,
        index: row.index,
        ...(row.line === undefined ? {} : { line: row.line }),
        ...(typeof key === "string" ? { key } : {}),
        reason: (error as LlmError).message,
      });
    }
  }
  if (format === undefined)
    throw new FormatError(
      `[loadDataset] ${name}: expected at least one row, got ${rows.length === 0 ? "none" : `${rows.length} that cannot be read`}`,
      {
        file: name,
        rejected: counts.rejected,
      },
    );
  return { name, format, rows: rows.length };
}

/** Says a renamed column's key as the file spells it. */
function inFileTerms(error: LlmError, columns: Readonly<Record<string, string>> | undefined): LlmError {
  const key = error.data["key"];
  const head = typeof key === "string" ? (key.split(".", 1)[0] as string) : "";
  const original = columns?.[head];
  if (original === undefined || typeof key !== "string") return error;
  const spelled = original + key.slice(head.length);
  return new FormatError(
    error.message.replace(`"${key}"`, `"${spelled}"`),
    { ...error.data, key: spelled },
    error.cause,
  );
}

/** Adds the row to a set-wide error, where it first showed. */
function withPlace(error: unknown, place: RowPlace): unknown {
  if (!(error instanceof FormatError) || error.data["file"] !== undefined) return error;
  return new FormatError(
    `${error.message} (first at ${placeText(place)})`,
    {
      ...error.data,
      file: place.source,
      index: place.index,
      ...(place.line === undefined ? {} : { line: place.line }),
    },
    error,
  );
}

function loadSource(
  source: ParsedSource,
  index: number,
  options: ResolvedDatasetOptions,
  counts: LoadCounts,
): TokenDocument[] {
  const documents: TokenDocument[] = [];
  const rejectedBefore = counts.rejected.length;
  const { name, format, rows } = eachExample(source, options, options.onBadRow, counts, (example, place) => {
    const withSystem =
      options.system !== undefined &&
      example.kind === "chat" &&
      !example.messages.some((message) => message.role === "system")
        ? { ...example, messages: [{ role: "system", content: options.system }, ...example.messages] }
        : example;
    for (const encoded of tokenizeExample(withSystem, options, counts))
      for (const document of fit(encoded, example.kind === "text", options, counts, place))
        documents.push({ ...document, source: index, row: place.index });
  });
  counts.sources.push({
    name,
    format: format.name,
    rows,
    documents: documents.length,
    tokens: documents.reduce((sum, document) => sum + document.ids.length, 0),
    rejected: counts.rejected.length - rejectedBefore,
  });
  return documents;
}

/** Applies `overlong`. */
function fit(
  document: EncodedDocument,
  isText: boolean,
  options: ResolvedDatasetOptions,
  counts: LoadCounts,
  place: RowPlace,
): EncodedDocument[] {
  const { ids, lossWeights } = document;
  const { maxTokens } = options;
  if (ids.length <= maxTokens) return [document];
  if (options.overlong === "error")
    throw new FormatError(
      `[loadDataset] ${placeText(place)}: expected at most ${maxTokens} tokens, got ${ids.length}; raise maxTokens or set \`overlong\``,
      {
        file: place.source,
        index: place.index,
        tokens: ids.length,
        maxTokens,
      },
    );
  if (options.overlong === "drop") {
    counts.dropped.documents += 1;
    counts.dropped.tokens += ids.length;
    return [];
  }
  if (options.overlong === "split" && isText) {
    const windows: EncodedDocument[] = [];
    for (let start = 0; start + 1 < ids.length; start += maxTokens - 1)
      windows.push({
        ids: ids.slice(start, start + maxTokens),
        lossWeights: lossWeights.slice(start, start + maxTokens),
      });
    counts.windowed.documents += 1;
    counts.windowed.windows += windows.length;
    return windows;
  }
  counts.truncated.documents += 1;
  counts.truncated.tokens += ids.length - maxTokens;
  const kept = { ids: ids.slice(0, maxTokens), lossWeights: lossWeights.slice(0, maxTokens) };
  if (isLearnable(kept.lossWeights)) return [kept];
  counts.nothingLeft += 1;
  return [];
}
