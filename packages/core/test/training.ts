/** A tiny training loop, the same in every thread. */
import {
  backward,
  createAdamW,
  embedding,
  linear,
  linearCrossEntropy,
  randomNormal,
  rmsNorm,
  scope,
  swiglu,
  synchronize,
  tensor,
  type Tensor,
} from "../src/index.js";

/** Trains for some steps and returns the bits of the parameters; what it made stays with the caller's thread when `dispose` is not called. */
export function trainTiny(steps: number, seed: number): { bits: string; dispose: () => void } {
  const [vocabulary, width, tokens] = [31, 16, 24];
  const make = (shape: number[], stream: number): Tensor => {
    const t = randomNormal(shape, { seed, stream, std: 0.2 }).keep();
    t.requiresGrad = true;
    return t;
  };
  const parameters = [
    make([vocabulary, width], 0),
    make([width], 1),
    make([4 * width, width], 2),
    make([width, 2 * width], 3),
  ];
  const [embed, norm, up, down] = parameters as [Tensor, Tensor, Tensor, Tensor];
  const optimizer = createAdamW(
    parameters.map((t, i) => ({ name: String(i), tensor: t })),
    { lr: 1e-2 },
  );
  const ids = tensor(Int32Array.from({ length: tokens }, (_, i) => (i * 7 + seed) % vocabulary)).keep();
  const labels = tensor(Int32Array.from({ length: tokens }, (_, i) => (i * 7 + 7 + seed) % vocabulary)).keep();
  for (let step = 0; step < steps; step++) {
    scope(() => {
      const x = rmsNorm(embedding(ids, embed), norm, 1e-5);
      const h = linear(swiglu(linear(x, { weight: up, bias: null })), { weight: down, bias: null });
      backward(linearCrossEntropy(h, embed, labels).loss);
      optimizer.step();
      optimizer.zeroGrad();
    });
  }
  synchronize();
  const bits = Buffer.concat(parameters.map((t) => Buffer.from((t.dataSync() as Float32Array).buffer))).toString(
    "base64",
  );
  return {
    bits,
    dispose() {
      optimizer.dispose();
      for (const t of [...parameters, ids, labels]) t.dispose();
    },
  };
}
