import type { Engine } from "./engine-types.js";
import type { GenerationObserver } from "./openai/generation.js";

type Labels = Record<string, string>;

/** Seconds; from a fast step on a GPU to a long answer on a CPU. */
const secondsBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
const tokensBuckets = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144];

class Histogram {
  readonly bounds: readonly number[];
  readonly counts: Float64Array;
  sum = 0;

  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.counts = new Float64Array(bounds.length + 1);
  }

  observe(value: number): void {
    let i = 0;
    while (i < this.bounds.length && value > this.bounds[i]!) i++;
    this.counts[i]!++;
    this.sum += value;
  }
}

/** Times and token counts of one model's requests. */
class ModelMetrics {
  readonly timeToFirstToken = new Histogram(secondsBuckets);
  readonly interTokenLatency = new Histogram(secondsBuckets);
  readonly endToEnd = new Histogram(secondsBuckets);
  readonly requestPromptTokens = new Histogram(tokensBuckets);
  readonly requestGenerationTokens = new Histogram(tokensBuckets);
  readonly finished = { stop: 0, length: 0, abort: 0 };

  observe(): GenerationObserver {
    const start = performance.now();
    const last: number[] = [];
    return {
      tokens: (choice, count) => {
        const now = performance.now();
        const before = last[choice];
        last[choice] = now;
        if (before === undefined) this.timeToFirstToken.observe((now - start) / 1000);
        else if (count > 0)
          for (let i = 0; i < count; i++) this.interTokenLatency.observe((now - before) / 1000 / count);
      },
      finish: (_choice, reason, promptTokens, completionTokens) => {
        this.finished[reason]++;
        if (reason === "abort") return;
        this.endToEnd.observe((performance.now() - start) / 1000);
        if (promptTokens > 0) this.requestPromptTokens.observe(promptTokens);
        this.requestGenerationTokens.observe(completionTokens);
      },
    };
  }
}

/**
 * What GET /metrics shows, in Prometheus' text format 0.0.4. Names that vLLM has too are its names (`vllm:…`), so dashboards
 * made for it work; the rest is `llm_…`.
 */
export class ServerMetrics {
  readonly #engines: ReadonlyMap<string, Engine>;
  readonly #models = new Map<string, ModelMetrics>();
  readonly #responses = new Map<string, { labels: Labels; count: number }>();
  /** Generation requests that this server works on now. */
  activeRequests = 0;

  constructor(engines: ReadonlyMap<string, Engine>) {
    this.#engines = engines;
    for (const name of engines.keys()) this.#models.set(name, new ModelMetrics());
  }

  /** An observer for one generation request; its clock starts now. */
  observe(model: string): GenerationObserver {
    return this.#models.get(model)!.observe();
  }

  response(route: string, method: string, status: number): void {
    const key = `${route} ${method} ${status}`;
    const entry = this.#responses.get(key);
    if (entry !== undefined) entry.count++;
    else this.#responses.set(key, { labels: { route, method, status: String(status) }, count: 1 });
  }

  render(): string {
    const out = new TextWriter();
    const engines = [...this.#engines].map(([model_name, engine]) => ({
      labels: { model_name },
      stats: engine.stats(),
      engine,
    }));
    type Row = (typeof engines)[number];
    const perEngine = (name: string, type: "gauge" | "counter", help: string, value: (row: Row) => number) =>
      out.family(
        name,
        type,
        help,
        engines.map((row) => [row.labels, value(row)] as const),
      );
    perEngine("vllm:num_requests_running", "gauge", "Sequences being computed.", ({ stats }) => stats.running);
    perEngine("vllm:num_requests_waiting", "gauge", "Sequences waiting for a place.", ({ stats }) => stats.waiting);
    perEngine("vllm:kv_cache_usage_perc", "gauge", "Used fraction of the key/value blocks, 0 to 1.", ({ stats }) =>
      stats.kvBlocksTotal === 0 ? 0 : stats.kvBlocksUsed / stats.kvBlocksTotal,
    );
    perEngine(
      "vllm:prefix_cache_queries_total",
      "counter",
      "Tokens looked up in the prefix cache.",
      ({ stats }) => stats.prefixQueriedTokens,
    );
    perEngine(
      "vllm:prefix_cache_hits_total",
      "counter",
      "Tokens found in the prefix cache.",
      ({ stats }) => stats.prefixHitTokens,
    );
    perEngine(
      "vllm:num_preemptions_total",
      "counter",
      "Times a sequence lost its blocks and was computed again.",
      ({ stats }) => stats.preemptions,
    );
    perEngine(
      "vllm:prompt_tokens_total",
      "counter",
      "Prompt tokens of admitted requests.",
      ({ stats }) => stats.promptTokens,
    );
    perEngine("vllm:generation_tokens_total", "counter", "Generated tokens.", ({ stats }) => stats.generatedTokens);
    out.family(
      "vllm:request_success_total",
      "counter",
      "Finished answers by reason.",
      [...this.#models].flatMap(([model_name, { finished }]) =>
        Object.entries(finished).map(([finished_reason, count]) => [{ model_name, finished_reason }, count] as const),
      ),
    );
    const histograms: [string, string, (metrics: ModelMetrics) => Histogram][] = [
      ["vllm:time_to_first_token_seconds", "From the request's arrival to its first token.", (m) => m.timeToFirstToken],
      ["vllm:inter_token_latency_seconds", "Between two tokens of an answer.", (m) => m.interTokenLatency],
      ["vllm:e2e_request_latency_seconds", "From the request's arrival to the end of an answer.", (m) => m.endToEnd],
      ["vllm:request_prompt_tokens", "Prompt tokens of a request.", (m) => m.requestPromptTokens],
      ["vllm:request_generation_tokens", "Generated tokens of an answer.", (m) => m.requestGenerationTokens],
    ];
    for (const [name, help, pick] of histograms)
      out.histogram(
        name,
        help,
        [...this.#models].map(([model_name, metrics]) => [{ model_name }, pick(metrics)] as const),
      );
    perEngine("llm_engine_up", "gauge", "1 while the engine can compute.", ({ engine }) =>
      engine.health().status === "ok" ? 1 : 0,
    );
    perEngine("llm_engine_steps_total", "counter", "Forward passes.", ({ stats }) => stats.steps);
    perEngine("llm_kv_blocks_used", "gauge", "Used key/value blocks.", ({ stats }) => stats.kvBlocksUsed);
    perEngine("llm_kv_blocks", "gauge", "Key/value blocks.", ({ stats }) => stats.kvBlocksTotal);
    out.family("llm_http_requests_in_progress", "gauge", "Generation requests being worked on.", [
      [{}, this.activeRequests],
    ]);
    out.family(
      "llm_http_responses_total",
      "counter",
      "Responses by route, method and status.",
      [...this.#responses.values()].map(({ labels, count }) => [labels, count] as const),
    );
    const memory = process.memoryUsage();
    out.family("process_resident_memory_bytes", "gauge", "Resident memory.", [[{}, memory.rss]]);
    out.family("nodejs_heap_size_used_bytes", "gauge", "Used JavaScript heap.", [[{}, memory.heapUsed]]);
    return out.text;
  }
}

class TextWriter {
  text = "";

  family(name: string, type: "gauge" | "counter", help: string, samples: readonly (readonly [Labels, number])[]): void {
    this.#head(name, type, help);
    for (const [labels, value] of samples) this.text += `${name}${labelText(labels)} ${value}\n`;
  }

  histogram(name: string, help: string, samples: readonly (readonly [Labels, Histogram])[]): void {
    this.#head(name, "histogram", help);
    for (const [labels, { bounds, counts, sum }] of samples) {
      let total = 0;
      counts.forEach((count, i) => {
        total += count;
        this.text += `${name}_bucket${labelText({ ...labels, le: i < bounds.length ? String(bounds[i]) : "+Inf" })} ${total}\n`;
      });
      this.text += `${name}_sum${labelText(labels)} ${sum}\n${name}_count${labelText(labels)} ${total}\n`;
    }
  }

  #head(name: string, type: string, help: string): void {
    this.text += `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`;
  }
}

function labelText(labels: Labels): string {
  const entries = Object.entries(labels);
  if (entries.length === 0) return "";
  return `{${entries.map(([key, value]) => `${key}="${value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")}"`).join(",")}}`;
}
