import { expect, test } from "vitest";
import { serveSimulated } from "../test/serve-simulated.js";

interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

/** A strict reader of Prometheus' text format: every sample belongs to the family announced above it. */
function parse(text: string): Sample[] {
  expect(text.endsWith("\n")).toBe(true);
  const samples: Sample[] = [];
  const families = new Set<string>();
  let family = "";
  let type = "";
  for (const line of text.slice(0, -1).split("\n")) {
    const head = /^# (HELP|TYPE) ([a-zA-Z_:][\w:]*) (.+)$/.exec(line);
    if (head !== null) {
      if (head[1] === "HELP") {
        expect(families).not.toContain(head[2]);
        families.add((family = head[2]!));
      } else {
        expect(head[2]).toBe(family);
        type = head[3]!;
        expect(["counter", "gauge", "histogram"]).toContain(type);
      }
      continue;
    }
    const sample = /^([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)$/.exec(line);
    expect(sample, line).not.toBeNull();
    const name = sample![1]!;
    expect(type === "histogram" ? [`${family}_bucket`, `${family}_sum`, `${family}_count`] : [family]).toContain(name);
    if (type === "counter") expect(name).toMatch(/_total$/);
    const value = Number(sample![3]);
    expect(Number.isFinite(value)).toBe(true);
    samples.push({
      name,
      value,
      labels: Object.fromEntries(
        [...(sample![2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key!, text!]),
      ),
    });
  }
  return samples;
}

test("/metrics is strict Prometheus text, and its tokens are the sum of all usages", async () => {
  const { openai, server } = await serveSimulated({ modelName: 'a "quoted" name' });
  const usages = await Promise.all(
    [1, 2, 3].map(
      async (n) =>
        (await openai.completions.create({ model: 'a "quoted" name', prompt: "hello", n, max_tokens: 10 * n })).usage!,
    ),
  );
  const scrape = async () => parse(await (await fetch(`${server.url}/metrics`)).text());
  const samples = await scrape();
  const value = (name: string, labels: Record<string, string> = {}) =>
    samples
      .filter((s) => s.name === name && Object.entries(labels).every(([k, v]) => s.labels[k] === v))
      .reduce((sum, s) => sum + s.value, 0);
  const sum = (field: "prompt_tokens" | "completion_tokens") =>
    usages.reduce((total, usage) => total + usage[field], 0);
  expect(value("vllm:prompt_tokens_total")).toBe(sum("prompt_tokens"));
  expect(value("vllm:generation_tokens_total")).toBe(sum("completion_tokens"));
  expect(value("vllm:request_success_total", { finished_reason: "length" })).toBe(1);
  expect(value("vllm:request_success_total", { finished_reason: "stop" })).toBe(5);
  expect(value("vllm:time_to_first_token_seconds_count")).toBe(6);
  expect(value("vllm:time_to_first_token_seconds_bucket", { le: "+Inf" })).toBe(6);
  expect(value("vllm:request_generation_tokens_sum")).toBe(sum("completion_tokens"));
  expect(value("vllm:num_requests_running")).toBe(0);
  expect(value("vllm:kv_cache_usage_perc")).toBe(0);
  expect(value("llm_engine_up")).toBe(1);
  expect(value("llm_http_responses_total", { route: "/v1/completions", status: "200" })).toBe(3);
  const later = await scrape();
  for (const { name, labels, value: before } of samples.filter((s) => /_(total|count|bucket)$/.test(s.name))) {
    const after = later.find((s) => s.name === name && JSON.stringify(s.labels) === JSON.stringify(labels));
    expect(after!.value).toBeGreaterThanOrEqual(before);
  }
});
