import { permutation } from "./order.js";

/**
 * How several sources become one: "concat" takes all documents once; "interleave-under" takes them in proportion to the
 * weights until the first is used up, "interleave-over" until the last is, starting short sources again.
 */
export type Mix = "concat" | "interleave-under" | "interleave-over";

/**
 * Combines the documents of several sources.
 * - `concat`: all of each, one source after the other.
 * - `interleave-under`: as many as the weights allow until the first source is used up: nothing is repeated, sources
 *   with more than their share give a subset that `seed` picks.
 * - `interleave-over`: until the last source is used up: nothing is left out, shorter sources start again (in another order).
 *
 * Shares are exact (up to one document), not drawn: source s gives wₛ·scale documents, scale = min or max of countₛ/wₛ.
 * The sources alternate in proportion, which shows when the set is not shuffled.
 * @param counts  documents per source
 * @param weights  share per source, > 0; any scale
 * @returns pairs of source and document index
 */
export function mixSources(
  counts: readonly number[],
  weights: readonly number[],
  mix: Mix,
  seed: number,
): { source: number; index: number }[] {
  if (mix === "concat")
    return counts.flatMap((count, source) => Array.from({ length: count }, (_, index) => ({ source, index })));
  const ratios = counts.map((count, source) => count / (weights[source] as number));
  const scale = mix === "interleave-under" ? Math.min(...ratios) : Math.max(...ratios);
  const quotas = counts.map((count, source) => {
    const quota = (weights[source] as number) * scale;
    if (count === 0) return 0;
    return mix === "interleave-under"
      ? Math.min(count, Math.floor(quota + 1e-9))
      : Math.max(count, Math.ceil(quota - 1e-9));
  });
  const total = quotas.reduce((sum, quota) => sum + quota, 0);
  const given = counts.map(() => 0);
  const passes = new Map<string, Int32Array>();
  const mixed: { source: number; index: number }[] = [];
  for (let k = 1; k <= total; k += 1) {
    // the source that is furthest behind its share
    let source = -1;
    let most = -Infinity;
    for (const [candidate, quota] of quotas.entries()) {
      const taken = given[candidate] as number;
      const behind = (quota * k) / total - taken;
      if (taken < quota && behind > most) {
        most = behind;
        source = candidate;
      }
    }
    const count = counts[source] as number;
    const taken = given[source] as number;
    const pass = Math.floor(taken / count);
    const key = `${source}/${pass}`;
    let order = passes.get(key);
    if (order === undefined) passes.set(key, (order = permutation(count, seed, source * 65_536 + pass)));
    mixed.push({ source, index: order[taken % count] as number });
    given[source] = taken + 1;
  }
  return mixed;
}
