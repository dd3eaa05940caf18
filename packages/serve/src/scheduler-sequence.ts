import type { SequenceBlocks } from "@llm/kvcache";

/** What the scheduler needs to know of a request; the engine's own request type extends it (sampling options and so on). */
export interface ScheduleRequest {
  /** Unique among live requests. */
  readonly id: string;
  /** At least one id. */
  readonly promptIds: Int32Array;
  /** Most tokens to generate per sequence; 0 = only compute the prompt. */
  readonly maxTokens: number;
  /** Sequences to grow from the prompt. @default 1 */
  readonly n?: number;
  /** A sampled id of this set ends its sequence with "stop". */
  readonly stopTokenIds?: ReadonlySet<number>;
  /** Lower runs earlier; equal priorities run first come, first served. @default 0 */
  readonly priority?: number;
  /** Only requests with the same salt share cached prefixes (adapter, tenant). @default "" */
  readonly salt?: string;
  /** Logits of every prompt position are wanted, so sequence 0 takes no prefix from the cache. @default false */
  readonly promptLogits?: boolean;
}

/** Where a sequence is: in the queue, being computed, or done. */
export type SequenceState = "waiting" | "running" | "finished";
/** Why a sequence ended: a stop token or text, its token limit, or an abort. */
export type FinishReason = "stop" | "length" | "abort";

/** One growing sequence of a request. Fields are the scheduler's to write and everybody's to read. */
export class Sequence<TRequest extends ScheduleRequest = ScheduleRequest> {
  readonly request: TRequest;
  /** Which of the request's n sequences. */
  readonly index: number;
  /** Order of arrival over the scheduler's life. */
  readonly arrival: number;
  readonly priority: number;
  readonly promptLength: number;
  /** Tokens at which the sequence ends with "length". */
  readonly maxLength: number;
  /** Sequence 0 of the same request (itself for index 0). */
  readonly leader: Sequence<TRequest>;
  state: SequenceState = "waiting";
  finishReason: FinishReason | undefined;
  /** Tokens whose keys and values are in the cache. */
  computed = 0;
  /** Prompt tokens found in the prefix cache (or shared with the leader) when first admitted. */
  cachedTokens = 0;
  /** Times the sequence lost its blocks and was computed again. */
  preemptions = 0;
  /** Was admitted at least once. */
  admitted = false;
  /** Every prompt position went through a step that reported its logits. */
  promptLogitsDone = false;
  blocks: SequenceBlocks | undefined;
  #tokens: Int32Array;
  #length: number;

  constructor(
    request: TRequest,
    index: number,
    arrival: number,
    maxLength: number,
    leader: Sequence<TRequest> | undefined,
  ) {
    this.request = request;
    this.index = index;
    this.arrival = arrival;
    this.priority = request.priority ?? 0;
    this.promptLength = request.promptIds.length;
    this.maxLength = maxLength;
    this.leader = leader ?? this;
    this.#tokens = new Int32Array(this.promptLength + Math.min(64, maxLength - this.promptLength));
    this.#tokens.set(request.promptIds);
    this.#length = this.promptLength;
  }

  /** Prompt and output tokens. */
  get length(): number {
    return this.#length;
  }

  /** Buffer that begins with the `length` tokens. */
  get tokens(): Int32Array {
    return this.#tokens;
  }

  /** Generated tokens so far. */
  get generatedCount(): number {
    return this.#length - this.promptLength;
  }

  /** Copy of the generated ids. */
  get outputIds(): Int32Array {
    return this.#tokens.slice(this.promptLength, this.#length);
  }

  append(id: number): void {
    if (this.#length === this.#tokens.length) {
      const grown = new Int32Array(Math.min(this.maxLength, this.#length * 2));
      grown.set(this.#tokens);
      this.#tokens = grown;
    }
    this.#tokens[this.#length++] = id;
  }
}

/** Scheduling order: priority, then arrival. Negative when a goes first. */
export function compareRank(a: Sequence, b: Sequence): number {
  return a.priority - b.priority || a.arrival - b.arrival;
}

/** Sequences kept in scheduling order. */
export class RankedList<TSequence extends Sequence> {
  readonly items: TSequence[] = [];

  get size(): number {
    return this.items.length;
  }

  insert(sequence: TSequence): void {
    this.items.splice(this.#lowerBound(sequence), 0, sequence);
  }

  remove(sequence: TSequence): boolean {
    const index = this.#lowerBound(sequence);
    if (this.items[index] !== sequence) return false;
    this.items.splice(index, 1);
    return true;
  }

  last(): TSequence | undefined {
    return this.items[this.items.length - 1];
  }

  #lowerBound(sequence: TSequence): number {
    let low = 0;
    let high = this.items.length;
    // Newest arrivals are the common case: look at the end first.
    if (high > 0 && compareRank(this.items[high - 1]!, sequence) < 0) return high;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (compareRank(this.items[middle]!, sequence) < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
