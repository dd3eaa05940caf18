/** Timing shared by the CPU benches. */
import { cpus } from "node:os";
import { execFileSync } from "node:child_process";
import { nativeDoctor, synchronize } from "@llm/core";

/** Best and median of `repeats` runs, in seconds; each run's queued work is waited for. */
export function time(
  run: () => void,
  options: { repeats?: number; warmups?: number } = {},
): { best: number; median: number } {
  const { repeats = 10, warmups = 2 } = options;
  const seconds: number[] = [];
  for (let i = -warmups; i < repeats; i++) {
    const begin = performance.now();
    run();
    synchronize();
    if (i >= 0) seconds.push((performance.now() - begin) / 1000);
  }
  seconds.sort((a, b) => a - b);
  return { best: seconds[0]!, median: seconds[Math.floor(seconds.length / 2)]! };
}

/** One line that says where numbers were taken. */
export function machineLine(): string {
  const d = nativeDoctor();
  let commit = "unknown commit";
  try {
    commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
  } catch {
    // Not a git checkout: the numbers then stand without one.
  }
  return `${cpus()[0]?.model ?? "unknown CPU"}, ${d.threads} threads, ${d.isa}, node ${process.versions.node}, commit ${commit}`;
}

/** Model configurations of the benches; random weights. */
export const qwen25_05b = {
  model_type: "qwen2",
  vocab_size: 151936,
  hidden_size: 896,
  intermediate_size: 4864,
  num_hidden_layers: 24,
  num_attention_heads: 14,
  num_key_value_heads: 2,
  max_position_embeddings: 32768,
  rms_norm_eps: 1e-6,
  rope_theta: 1_000_000,
  tie_word_embeddings: true,
};
