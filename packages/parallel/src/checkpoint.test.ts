import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createAdamW, FormatError, IoError, type Optimizer, OptionsError } from "@llm/core";
import type { CausalLM, TokenBatch } from "@llm/models";
import { packIds, randomDocuments, tinyModel } from "@llm/testing";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { bitsOf, withAdapters } from "./adapters.test-support.js";
import { listCheckpoints, type StepReport, train, type TrainOptions } from "./index.js";
import { adapterTensors } from "./parameters.js";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(`${tmpdir()}/train-checkpoint-`);
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const batches: TokenBatch[] = [0, 1, 2].map((seed) => packIds(randomDocuments([13, 7, 20], { vocabSize: 259, seed })));

async function finish(run: AsyncIterable<StepReport>): Promise<StepReport[]> {
  const reports: StepReport[] = [];
  for await (const report of run) reports.push(report);
  return reports;
}

type Extra = Partial<Omit<TrainOptions<CausalLM>, "model" | "data">>;
const start = (model: CausalLM, extra: Extra = {}) =>
  train({ model, data: batches, steps: 12, lr: 1e-2, seed: 3, microBatchTokens: 20, ...extra });

/** Runs until after a step, then aborts; a checkpoint is written where the run stopped. */
async function interrupt(model: CausalLM, after: number, extra: Extra = {}): Promise<StepReport[]> {
  const stop = new AbortController();
  const reports: StepReport[] = [];
  const run = start(model, { ...extra, signal: stop.signal });
  try {
    for await (const report of run) {
      reports.push(report);
      if (report.step === after) stop.abort();
    }
  } catch {
    return [...run.reports];
  }
  throw new Error("the run was not interrupted");
}

describe("resuming", () => {
  const kinds: [string, () => CausalLM, Extra][] = [
    ["all weights in f32", () => tinyModel(), {}],
    ["all weights in bf16, with masters", () => tinyModel({ dtype: "bf16" }), {}],
    ["adapters with dropout on f32", () => withAdapters(tinyModel(), { rank: 3, initB: 0.2, dropout: 0.3 }), {}],
    [
      "adapters with dropout on bf16, recomputing activations",
      () => withAdapters(tinyModel({ dtype: "bf16" }), { rank: 3, initB: 0.2, dropout: 0.3 }),
      { checkpointing: true },
    ],
    [
      "momentum",
      () => tinyModel(),
      { optimizer: "sgd", momentum: 0.9, schedule: { kind: "linear", warmupRatio: 0.25 }, accumulation: 2 },
    ],
  ];
  it.each(kinds)("gives the bits of the uninterrupted run: %s", async (_, make, extra) => {
    const parameters = (m: CausalLM) => [...m.decoder.trainable(), ...adapterTensors(m.decoder)];
    const whole = make();
    const expected = await finish(start(whole, extra));

    const checkpoint = { folder, every: 100, resume: true };
    const first = make();
    const before = await interrupt(first, 4, { ...extra, checkpoint });
    expect(before.length).toBeLessThan(9);
    first.dispose();
    const second = make();
    const after = await finish(start(second, { ...extra, checkpoint }));

    const losses = (reports: StepReport[]) => reports.map((r) => [r.step, r.loss, r.gradNorm, r.lr]);
    expect(after[0]!.step).toBe(before.at(-1)!.step + 1);
    expect(losses([...before, ...after])).toEqual(losses(expected));
    expect(bitsOf(parameters(second))).toEqual(bitsOf(parameters(whole)));
    whole.dispose();
    second.dispose();
  });

  it("from an older checkpoint by its path gives the same end", async () => {
    const model = tinyModel();
    await start(model, { checkpoint: { folder, every: 5, keep: 10 } }).done;
    const again = tinyModel({ seed: 99 });
    const reports = await finish(
      start(again, { checkpoint: { folder, every: 5, keep: 10, resume: join(folder, "step-5") } }),
    );
    expect(reports[0]!.step).toBe(6);
    expect(bitsOf(again.decoder.trainable())).toEqual(bitsOf(model.decoder.trainable()));
    model.dispose();
    again.dispose();
  });

  it("of a finished run does nothing", async () => {
    const model = tinyModel();
    await start(model, { steps: 2, checkpoint: { folder } }).done;
    const again = tinyModel();
    const run = start(again, { steps: 2, checkpoint: { folder, resume: true } });
    expect(await run.done).toMatchObject({ steps: 2, checkpoint: join(folder, "step-2") });
    expect(run.reports).toHaveLength(0);
    expect(bitsOf(again.decoder.trainable())).toEqual(bitsOf(model.decoder.trainable()));
    model.dispose();
    again.dispose();
  });

  it("with options that change the outcome is refused, naming each, unless forced", async () => {
    const model = tinyModel();
    await start(model, { steps: 4, checkpoint: { folder } }).done;
    const changed = { steps: 6, lr: 2e-2, microBatchTokens: 13 };
    const error = await start(model, { ...changed, checkpoint: { folder, resume: true } }).done.then(
      () => undefined,
      (e: unknown) => e as OptionsError,
    );
    expect(error).toBeInstanceOf(OptionsError);
    expect(error!.data["differing"]).toEqual(["totalSteps", "lr", "microBatchTokens"]);
    expect(error!.message).toContain("lr (was 0.01, is 0.02)");
    const forced = start(model, { ...changed, checkpoint: { folder, resume: true, force: true } });
    expect((await forced.done).steps).toBe(6);
    expect(forced.reports.map((r) => r.step)).toEqual([5, 6]);
    model.dispose();
  });

  it("of another model's checkpoint is refused and changes nothing", async () => {
    const model = tinyModel();
    await start(model, { steps: 2, checkpoint: { folder } }).done;
    const other = tinyModel({ hidden: 16 });
    const before = bitsOf(other.decoder.trainable());
    await expect(start(other, { steps: 2, checkpoint: { folder, resume: true, force: true } }).done).rejects.toThrow(
      /embed_tokens.weight: expected F32 \[259, 16\], got F32 \[259, 32\]/,
    );
    expect(bitsOf(other.decoder.trainable())).toEqual(before);
    model.dispose();
    other.dispose();
  });
});

describe("checkpoints", () => {
  it("are kept up to the limit, the newest ones", async () => {
    const model = tinyModel({ layers: 1 });
    const reports = await finish(start(model, { checkpoint: { folder, every: 2, keep: 3 } }));
    expect(reports.filter((r) => r.checkpoint).map((r) => r.step)).toEqual([2, 4, 6, 8, 10, 12]);
    expect((await listCheckpoints(folder)).map((path) => path.slice(folder.length + 1))).toEqual([
      "step-8",
      "step-10",
      "step-12",
    ]);
    expect((await readdir(join(folder, "step-12"))).sort()).toEqual([
      "optimizer.safetensors",
      "state.json",
      "weights.safetensors",
    ]);
    model.dispose();
  });

  it("of another run in the folder are not overwritten", async () => {
    const model = tinyModel({ layers: 1 });
    await start(model, { steps: 1, checkpoint: { folder } }).done;
    await expect(start(model, { steps: 1, checkpoint: { folder } }).done).rejects.toThrow(
      /holds checkpoints of another run \(1\); set resume/,
    );
    model.dispose();
  });

  it("that a crash left half written are ignored and cleaned away", async () => {
    const model = tinyModel();
    await interrupt(model, 3, { checkpoint: { folder } });
    const [good] = await listCheckpoints(folder);
    // As after a kill while step-9 was being written: a draft with a cut file and no state.
    const draft = join(folder, ".tmp-step-9-0badf00d");
    await cp(good!, draft, { recursive: true });
    await rm(join(draft, "state.json"));
    await truncate(join(draft, "weights.safetensors"), 1000);
    const again = tinyModel();
    const reports = await finish(start(again, { checkpoint: { folder, resume: true } }));
    const whole = tinyModel();
    await start(whole).done;
    expect(`step-${reports[0]!.step - 1}`).toBe(good!.slice(folder.length + 1));
    expect(bitsOf(again.decoder.trainable())).toEqual(bitsOf(whole.decoder.trainable()));
    expect(existsSync(draft)).toBe(false);
    for (const m of [model, again, whole]) m.dispose();
  });

  it("that were being replaced when the process died come back", async () => {
    const model = tinyModel({ layers: 1 });
    await start(model, { steps: 4, checkpoint: { folder } }).done;
    await rename(join(folder, "step-4"), join(folder, ".old-step-4"));
    await mkdir(join(folder, ".tmp-step-4-12345678"));
    expect((await start(model, { steps: 4, checkpoint: { folder, resume: true } }).done).checkpoint).toBe(
      join(folder, "step-4"),
    );
    expect(await readdir(folder)).toEqual(["step-4"]);
    model.dispose();
  });

  it("that cannot be written leave the earlier ones whole", async () => {
    const model = tinyModel({ layers: 1 });
    const parameters = model.decoder.trainable();
    const inner = createAdamW(parameters);
    let saves = 0;
    const failing: Optimizer = Object.assign(Object.create(inner) as Optimizer, {
      state: () => {
        if (++saves === 2) throw new Error("disk full");
        return inner.state();
      },
    });
    const error = await start(model, { optimizer: failing, checkpoint: { folder, every: 2 } }).done.then(
      () => undefined,
      (e: unknown) => e,
    );
    expect(error).toBeInstanceOf(IoError);
    expect((error as Error).message).toMatch(/cannot write the checkpoint .*step-4: disk full/);
    expect(await readdir(folder)).toEqual(["step-2"]);
    inner.dispose();
    model.dispose();
  });

  it("with a broken state say which file and key", async () => {
    const model = tinyModel({ layers: 1 });
    await start(model, { steps: 1, checkpoint: { folder } }).done;
    const file = join(folder, "step-1", "state.json");
    const state = JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;
    const resume = () => start(model, { steps: 1, checkpoint: { folder, resume: true } }).done;
    await writeFile(file, JSON.stringify({ ...state, step: "one" }));
    await expect(resume()).rejects.toThrow(/step-1\/state\.json: step:/);
    await writeFile(file, "{");
    await expect(resume()).rejects.toBeInstanceOf(FormatError);
    await expect(
      start(model, { steps: 1, checkpoint: { folder, resume: join(folder, "step-7") } }).done,
    ).rejects.toBeInstanceOf(IoError);
    model.dispose();
  });
});
