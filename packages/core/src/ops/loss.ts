/** Losses over a vocabulary, fused with the output projection so that the logits of all tokens never exist together. V vocabulary. */
import type { Device } from "../device.js";
import { gradEnabled, isUnitGrad, needsGrad, noGrad, record } from "../autograd.js";
import { type DType, dtypes } from "../dtype.js";
import * as raw from "../gen/ops.js";
import { scope } from "../memory.js";
import { empty, type Tensor } from "../tensor.js";

const code = (dtype: DType): number => dtypes.indexOf(dtype);

/** Elements of logits computed at a time: 128 MiB of f32 on the CPU; a GPU needs many rows to be busy, 1024 of a vocabulary of 152,064. */
const chunkElements: Record<Device, number> = { cpu: 32 << 20, cuda: 152_064 * 1024 };

/**
 * Rows of logits computed at a time, at least 16; chunks as even as they go. The head's weight is read and packed once a chunk, so few
 * large chunks are faster.
 */
function chunkRows(rows: number, vocabulary: number, device: Device, chunk?: number): number {
  if (chunk !== undefined) return Math.max(1, Math.min(rows, chunk));
  const most = Math.max(16, Math.floor(chunkElements[device] / Math.max(vocabulary, 1)));
  return Math.max(1, Math.ceil(rows / Math.max(1, Math.ceil(rows / most))));
}

/**
 * Dtype of logits that only a training loss reads: on a GPU that of bf16 activations, which halves the traffic and is what the
 * gradient is rounded to anyway (statistics and loss are computed in f32 from them); f32 otherwise.
 */
const logitsDtype = (x: Tensor): DType => (x.device === "cuda" && x.dtype === "bf16" ? "bf16" : "f32");

/** An output projection: dense weight [V, C], or any function with its gradient (quantized heads). */
export interface Head {
  /** logits [t, V] of x [t, C], f32 unless another dtype is allowed and at hand */
  logits(x: Tensor, allowed?: DType): Tensor;
  /** dx [t, C] of dlogits [t, V] */
  backward(dlogits: Tensor): Tensor;
  /** Dense weight when it may want a gradient. */
  weight?: Tensor;
}

/** The head of a dense weight [V, C]; logits in f32. */
export function denseHead(weight: Tensor): Head {
  return {
    weight,
    logits: (x, allowed = "f32") => raw.matmul(x, weight, null, 0, 1, code(allowed)),
    backward: (dlogits) => raw.matmul(dlogits, weight, null, 0, 0, code(weight.dtype)),
  };
}

/** Runs `rowLoss` on chunks of logits and collects loss, dx and dW; the core of every fused vocabulary loss. */
function chunkedLoss(
  name: string,
  x: Tensor,
  head: Head,
  losses: number,
  chunk: number | undefined,
  rowLoss: (logits: Tensor, start: number, end: number, grad: boolean) => Tensor[],
): Tensor[] {
  const rows = x.dim(0);
  const weight = head.weight;
  const wantX = gradEnabled() && needsGrad(x);
  const wantW = gradEnabled() && weight !== undefined && needsGrad(weight);
  const parts = noGrad(() =>
    scope(() => {
      const dx = wantX ? empty(x.shape, x.dtype, "activations", x.device) : null;
      const dw = wantW ? empty(weight!.shape, "f32", "gradients", x.device) : null;
      if (dw) raw.fill(dw, 0);
      const columns: Tensor[][] = Array.from({ length: losses }, () => []);
      const step = chunkRows(rows, weight?.dim(0) ?? 4096, x.device, chunk);
      for (let start = 0; start < rows; start += step) {
        const end = Math.min(rows, start + step);
        const kept = scope(() => {
          const x_chunk = x.rows(start, end);
          const logits = head.logits(x_chunk, wantX || wantW ? logitsDtype(x) : "f32");
          const values = rowLoss(logits, start, end, wantX || wantW);
          if (wantX || wantW) {
            const dlogits = x.dtype === logits.dtype ? logits : raw.cast(logits, code(x.dtype));
            if (dx) raw.copy(dx.rows(start, end), head.backward(dlogits));
            if (dw) raw.matmulAcc(dw, dlogits, x_chunk, 1, 0, 1, 1);
          }
          return values;
        });
        kept.forEach((value, i) => columns[i]!.push(value));
      }
      const joined = columns.map((c) =>
        c.length === 1 ? c[0]! : c.length === 0 ? empty([0], "f32", "activations", x.device) : raw.concatRows(c),
      );
      return { joined, dx, dw };
    }),
  );
  const sum = raw.sum(parts.joined[0]!);
  const saved = [parts.dx, parts.dw].filter((t): t is Tensor => t !== null);
  record(name, [sum], [x, weight ?? null], saved, ([g], s) => {
    const times = (t: Tensor): Tensor => (isUnitGrad(g!) ? t : raw.mulScalarTensor(t, g!));
    let at = 0;
    return [wantX ? times(s[at++]!) : null, wantW ? times(s[at]!) : null];
  });
  return [sum, ...parts.joined];
}

/**
 * Sum over tokens of weight · −log softmax(x Wᵀ)[label], never holding the logits of more than a chunk of tokens; the gradient is
 * computed in the forward pass.
 * @param x       [T, C]
 * @param head    dense weight [V, C] or a Head
 * @param labels  i32 [T], −100 = ignored
 * @param weights f32 [T] or null
 * @param chunk   rows of logits held at a time; default about 128 MiB
 * @returns       loss f32 [1] (differentiable) and nll f32 [T] (weighted, for reports)
 * @see Hsu et al. 2024 (Liger Kernel), arXiv:2410.10989, section 3.2
 */
export function linearCrossEntropy(
  x: Tensor,
  head: Tensor | Head,
  labels: Tensor,
  weights: Tensor | null = null,
  chunk?: number,
): { loss: Tensor; nll: Tensor } {
  const h = "isTensor" in head ? denseHead(head) : head;
  const [loss, nll] = chunkedLoss("linearCrossEntropy", x, h, 1, chunk, (logits, start, end, grad) => {
    const l = labels.rows(start, end);
    const w = weights ? weights.rows(start, end) : null;
    return [grad ? raw.crossEntropyInplace(logits, l, w) : raw.crossEntropy(logits, l, w)];
  });
  return { loss: loss!, nll: nll! };
}

export interface DistillLossOptions {
  /** Softens both distributions; the KL term is multiplied by T². > 0 */
  temperature: number;
  /** Weight of the KL term in [0, 1]; the cross-entropy term has 1 − alpha. */
  alpha: number;
  /** Forward KL(teacher ‖ student) covers the teacher's modes; reverse KL(student ‖ teacher) seeks one. @default "forward" */
  kind?: "forward" | "reverse";
  /** Where the cross-entropy term's labels come from. @default "data" */
  hardLabels?: "data" | "teacher";
  chunk?: number;
}

/**
 * Sum over tokens of weight · (alpha · T² · KL + (1 − alpha) · CE), in chunks of tokens; neither model's full logits exist.
 * Student and teacher may differ in width; a longer vocabulary (padding) is cut to the common part.
 * @param x, studentHead         [T, Cs] and the student's output projection
 * @param teacherX, teacherHead  [T, Ct] and the teacher's; no gradient flows there
 * @param labels                 i32 [T], −100 = ignored in both terms
 * @returns loss f32 [1] (differentiable); kl, ce f32 [T] unblended (kl includes T²), for reports
 * @see Hinton et al. 2015, arXiv:1503.02531, section 2
 */
export function linearDistill(
  x: Tensor,
  studentHead: Tensor | Head,
  teacherX: Tensor,
  teacherHead: Tensor | Head,
  labels: Tensor,
  weights: Tensor | null,
  options: DistillLossOptions,
): { loss: Tensor; kl: Tensor; ce: Tensor } {
  const h = "isTensor" in studentHead ? denseHead(studentHead) : studentHead;
  const t = "isTensor" in teacherHead ? denseHead(teacherHead) : teacherHead;
  const kind = options.kind === "reverse" ? 1 : 0;
  const hard = options.hardLabels === "teacher" ? 1 : 0;
  const [loss, , kl, ce] = chunkedLoss("linearDistill", x, h, 3, options.chunk, (logits, start, end) => {
    const w = weights ? weights.rows(start, end) : null;
    const teacher = t.logits(teacherX.rows(start, end));
    const [k, c] = raw.distillInplace(
      logits,
      teacher,
      labels.rows(start, end),
      w,
      options.temperature,
      options.alpha,
      kind,
      hard,
    );
    return [raw.add(raw.scale(k, options.alpha), raw.scale(c, 1 - options.alpha)), k, c];
  });
  return { loss: loss!, kl: kl!, ce: ce! };
}

/** nll[t] = −log softmax(logits[t])[label], f32 [T]; −100 gives 0. Differentiable through its sum only inside linearCrossEntropy. */
export function crossEntropy(logits: Tensor, labels: Tensor, weights: Tensor | null = null): Tensor {
  const nll = raw.crossEntropy(logits, labels, weights);
  record("crossEntropy", [nll], [logits], [logits, labels, ...(weights ? [weights] : [])], ([dy], [x, l, w]) => {
    const grad = raw.scale(x!, 1);
    raw.crossEntropyInplace(grad, l!, w ?? null);
    // Row t of the gradient times dy[t]: scale columns of the transpose.
    return [raw.transpose(raw.mulCols(raw.transpose(grad), dy!, 0))];
  });
  return nll;
}
