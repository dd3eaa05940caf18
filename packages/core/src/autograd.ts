/**
 * Reverse-mode differentiation. Each differentiable op records a node with what its gradient needs; backward() walks the nodes from the
 * youngest to the oldest, frees what each saved as soon as it ran, and adds the gradients of leaves into `leaf.grad` (always f32).
 */
import { LlmError, ShapeError } from "./errors.js";
import * as raw from "./gen/ops.js";
import { disownNode, ownNode, ownTensor, scope } from "./memory.js";
import { empty, type Recipe, Tensor } from "./tensor.js";
import { type DType, dtypes } from "./dtype.js";

let enabled = true;
/** Inside the first pass of checkpoint(): recording is off, but the pass will run again with it on. */
let replayed = false;
let nextId = 0;

/** Runs `fn` without recording gradients. Synchronous. */
export function noGrad<T>(fn: () => T): T {
  return recording(false, false, fn);
}

function recording<T>(on: boolean, again: boolean, fn: () => T): T {
  const before = [enabled, replayed] as const;
  enabled = on;
  replayed = again;
  try {
    return fn();
  } finally {
    [enabled, replayed] = before;
  }
}

/** Runs `fn` with recording on (inside noGrad too). */
function withGrad<T>(fn: () => T): T {
  return recording(true, false, fn);
}

/** True where ops record gradients now. */
export function gradEnabled(): boolean {
  return enabled;
}

/**
 * True in a forward pass whose gradient will be asked for: where ops record, and in the first pass of checkpoint(), which records only
 * when it runs again. Dropout acts there and nowhere else.
 */
export function trainingForward(): boolean {
  return enabled || replayed;
}

/** Whether a gradient has to flow into this tensor. */
export const needsGrad = (t: Tensor | null | undefined): boolean => !!t && (t.requiresGrad || t.node !== undefined);

/** Where the gradient of one input goes: a leaf, or an output of another node. */
type Edge = { leaf: Tensor } | { node: Node; output: number; dtype: DType } | undefined;

/** What a backward function may ask about the inputs of its op. */
export interface BackwardContext {
  /** Whether input i wants a gradient; skip the work otherwise. */
  needs(i: number): boolean;
  /**
   * Lets a gradient be added in place: for a leaf, `add(grad)` must do grad += …; for others a zeroed f32 tensor is handed in.
   * Use for matrix products with beta = 1.
   */
  accumulate(i: number, shape: readonly number[], add: (grad: Tensor) => void): void;
}

/** Returns the gradient of each input (null = none, or already given to `accumulate`). `grads[o]` is null when output o was not used. */
export type Backward = (grads: (Tensor | null)[], saved: Tensor[], context: BackwardContext) => (Tensor | null)[];

/** A tensor that backward needs, or how to make it again. */
type Saved = Tensor | Recipe;

/** One recorded op. */
export class Node {
  readonly id = nextId++;
  readonly name: string;
  readonly edges: Edge[];
  /** How many tensors the op made. */
  readonly outputs: number;
  saved: Saved[];
  backward: Backward | undefined;

  constructor(name: string, edges: Edge[], outputs: number, saved: Saved[], backward: Backward) {
    this.name = name;
    this.edges = edges;
    this.outputs = outputs;
    this.saved = saved;
    this.backward = backward;
    ownNode(this);
  }

  /** Frees what the node saved; a later backward through it is an error. */
  dispose(): void {
    for (const s of this.saved) {
      if (s instanceof Tensor) s.dispose();
      else for (const tensor of s.inputs) tensor.dispose();
    }
    this.saved = [];
    this.backward = undefined;
  }
}

/**
 * Attaches outputs to the graph when recording is on and an input needs a gradient.
 * @param saved  tensors that `backward` reads; held until it ran
 * @param always record even when no input needs a gradient (parameters are used inside, as in checkpoint())
 */
export function record(
  name: string,
  outputs: Tensor[],
  inputs: readonly (Tensor | null)[],
  saved: readonly Tensor[],
  backward: Backward,
  always = false,
): void {
  if (!enabled || !(always || inputs.some(needsGrad))) return;
  const edges = inputs.map((t): Edge => {
    if (!t) return undefined;
    if (t.node) return { node: t.node, output: t.nodeOutput, dtype: t.dtype };
    return t.requiresGrad ? { leaf: t } : undefined;
  });
  const hold = (t: Tensor): Tensor => {
    const alias = t.alias();
    alias.freeWhenCollected();
    return alias;
  };
  const held = saved.map((t): Saved => {
    const { recipe } = t;
    return recipe ? { inputs: recipe.inputs.map(hold), run: recipe.run } : hold(t);
  });
  const node = new Node(name, edges, outputs.length, held, backward);
  outputs.forEach((t, i) => {
    t.node = node;
    t.nodeOutput = i;
  });
}

/**
 * Notes how `t` can be made again from `inputs`, which are kept for other gradients anyway: nodes that want `t` in their backward then hold
 * no memory for it. For ops that cost little beside the matrix product that follows (norms, gates).
 */
export function rememberRecipe(t: Tensor, inputs: readonly Tensor[], run: Recipe["run"]): void {
  if (enabled && inputs.some(needsGrad)) t.recipe = { inputs, run };
}

const f32Code = dtypes.indexOf("f32");

/** Leaves that got their `grad` inside {@link undoGradients}. */
let fresh: Set<Tensor> | undefined;

function setGrad(leaf: Tensor, grad: Tensor): Tensor {
  fresh?.add(leaf);
  return (leaf.grad = grad);
}

/** Runs `fn`; when it throws, gradients that it made are gone again. For recordings, whose gradients are never computed then. */
export function undoGradients<T>(fn: () => T): T {
  const before = fresh;
  const mine = (fresh = new Set<Tensor>());
  try {
    return fn();
  } catch (error) {
    for (const leaf of mine) {
      leaf.grad?.dispose();
      leaf.grad = undefined;
    }
    throw error;
  } finally {
    fresh = before;
  }
}

function leafGrad(leaf: Tensor, shape: readonly number[]): Tensor {
  if (leaf.grad) return leaf.grad;
  const grad = empty(shape, "f32", "gradients", leaf.device).keep();
  raw.fill(grad, 0);
  return setGrad(leaf, grad);
}

/** True for the gradient of the root, known to be one: lets losses skip a multiplication. */
const unitGrads = new WeakSet<Tensor>();
export const isUnitGrad = (t: Tensor): boolean => unitGrads.has(t);

/**
 * Adds d(sum of roots)/d(leaf) into `leaf.grad` for every leaf with requiresGrad that the roots depend on.
 * @param roots  tensors to differentiate; usually one f32 [1] loss
 * @param grads  gradient of each root; default ones (roots of one element only)
 * @throws {LlmError} a part of the graph was freed already (backward ran twice)
 */
export function backward(roots: Tensor | Tensor[], grads?: Tensor[]): void {
  const list = Array.isArray(roots) ? roots : [roots];
  const pending = new Map<Node, (Tensor | null)[]>();
  const give = (node: Node, output: number, grad: Tensor): void => {
    const slots = pending.get(node);
    if (!slots) {
      const fresh = new Array<Tensor | null>(node.outputs).fill(null);
      fresh[output] = grad;
      pending.set(node, fresh);
    } else if (slots[output]) {
      const sum = raw.add(slots[output]!, grad).keep();
      slots[output]!.dispose();
      grad.dispose();
      slots[output] = sum;
    } else slots[output] = grad;
  };

  noGrad(() => {
    try {
      list.forEach((root, i) => {
        const given = grads?.[i];
        if (given && given.shape.join() !== root.shape.join()) {
          throw new ShapeError(
            `[backward] the gradient of a root of shape [${root.shape.join(", ")}] must have that shape, got [${given.shape.join(", ")}]`,
          );
        }
        let grad = given?.alias();
        if (!grad) {
          if (root.size !== 1)
            throw new ShapeError(`[backward] a root of shape [${root.shape.join(", ")}] needs its gradient given`);
          grad = empty(root.shape, root.dtype, "gradients", root.device).keep();
          raw.fill(grad, 1);
          unitGrads.add(grad);
        }
        if (root.node) give(root.node, root.nodeOutput, grad);
        else {
          if (root.requiresGrad) raw.axpy(leafGrad(root, root.shape), grad, 1);
          grad.dispose();
        }
      });
      // Nodes can only depend on older ones, so the youngest pending node has all its gradients.
      while (pending.size > 0) {
        let node: Node | undefined;
        for (const candidate of pending.keys()) if (!node || candidate.id > node.id) node = candidate;
        runNode(node!, pending, give);
      }
    } finally {
      for (const grads of pending.values()) for (const grad of grads) grad?.dispose();
    }
  });
}

function runNode(
  node: Node,
  pending: Map<Node, (Tensor | null)[]>,
  give: (node: Node, output: number, grad: Tensor) => void,
): void {
  const incoming = pending.get(node)!;
  const run = node.backward;
  if (!run)
    throw new LlmError(
      "INTERNAL",
      `[backward] the graph behind ${node.name} was freed; call backward() once per forward`,
    );
  // A gradient has the dtype of the tensor that it belongs to, unless that is a leaf.
  const pass = (edge: { node: Node; output: number; dtype: DType }, grad: Tensor): void =>
    give(
      edge.node,
      edge.output,
      (grad.dtype === edge.dtype ? grad : raw.cast(grad, dtypes.indexOf(edge.dtype))).alias(),
    );
  scope(() => {
    const device = incoming.find((grad) => grad !== null)?.device;
    const context: BackwardContext = {
      needs: (i) => node.edges[i] !== undefined,
      accumulate: (i, shape, add) => {
        const edge = node.edges[i];
        if (!edge) return;
        if ("leaf" in edge) return add(leafGrad(edge.leaf, shape));
        const grad = empty(shape, "f32", "gradients", device);
        raw.fill(grad, 0);
        add(grad);
        pass(edge, grad);
      },
    };
    const saved = node.saved.map((s) => (s instanceof Tensor ? s : s.run(s.inputs)));
    const out = run(incoming, saved, context);
    // A leaf's gradient is added to in place later, so it must own its memory: what others see too is copied.
    const alone = (grad: Tensor): boolean =>
      grad.dtype === "f32" && !incoming.includes(grad) && out.indexOf(grad) === out.lastIndexOf(grad);
    node.edges.forEach((edge, i) => {
      const grad = out[i];
      if (!edge || !grad) return;
      if (!("leaf" in edge)) pass(edge, grad);
      else if (edge.leaf.grad) raw.axpy(edge.leaf.grad, grad, 1);
      else if (alone(grad) && !grad.sharesMemory) setGrad(edge.leaf, grad.keep());
      // A gradient that the forward pass computed and saved is the node's alone, and the node is done.
      else if (alone(grad) && node.saved.includes(grad)) setGrad(edge.leaf, grad.detach().keep());
      else setGrad(edge.leaf, raw.cast(grad, f32Code).keep());
    });
  });
  pending.delete(node);
  for (const grad of incoming) grad?.dispose();
  disownNode(node);
  node.dispose();
}

/**
 * Activation checkpointing: computes `fn` now without keeping intermediates and again during backward (Chen et al. 2016,
 * arXiv:1604.06174). `fn` must be a pure function of its inputs and of parameters; random ops must be counter-based (dropout is).
 */
export function checkpoint(fn: (...inputs: Tensor[]) => Tensor, ...inputs: Tensor[]): Tensor {
  if (!enabled) return fn(...inputs);
  const output = recording(false, true, () => scope(() => fn(...inputs)));
  const result = output.detach();
  record(
    "checkpoint",
    [result],
    inputs,
    inputs,
    ([grad], saved, context) => {
      const leaves = saved.map((t, i) => {
        const leaf = t.detach();
        leaf.requiresGrad = context.needs(i);
        return leaf;
      });
      const again = withGrad(() => fn(...leaves));
      backward([again], [grad!]);
      return leaves.map((leaf) => {
        const g = leaf.grad;
        leaf.grad = undefined;
        if (!g) return null;
        ownTensor(g);
        return g.dtype === leaf.dtype ? g : raw.cast(g, dtypes.indexOf(leaf.dtype));
      });
    },
    true,
  );
  return result;
}
