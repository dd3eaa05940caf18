/**
 * Who frees tensors. A tensor belongs to the innermost open scope of its thread, or to nobody: then it lives until `dispose()`, or until it
 * is collected. Autograd nodes hold their own references, so a scope may close over a graph that is still needed.
 */
import type { Tensor } from "./tensor.js";

/** Anything a scope can own: tensors, and autograd nodes with what they saved. */
interface Owned {
  dispose(): void;
}

interface Scope {
  tensors: Set<Tensor>;
  nodes: Set<Owned>;
}

const stack: Scope[] = [];

/** Called for each new tensor. */
export function ownTensor(tensor: Tensor): void {
  const scope = stack[stack.length - 1];
  if (scope) scope.tensors.add(tensor);
  else tensor.freeWhenCollected();
}

/** Called for each new autograd node. */
export function ownNode(node: Owned): void {
  stack[stack.length - 1]?.nodes.add(node);
}

/** Called when a node ran its backward and needs no owner any more. */
export function disownNode(node: Owned): void {
  for (const scope of stack) scope.nodes.delete(node);
}

/** Takes a tensor out of its scopes: it then lives until `dispose()` (or is collected). */
export function keep<T extends Tensor>(tensor: T): T {
  let owned = false;
  for (const scope of stack) owned = scope.tensors.delete(tensor) || owned;
  if (owned) tensor.freeWhenCollected();
  return tensor;
}

function collect(value: unknown, found: Set<Tensor>, isTensor: (v: unknown) => v is Tensor): void {
  if (isTensor(value)) found.add(value);
  else if (Array.isArray(value)) for (const item of value) collect(item, found, isTensor);
  else if (value !== null && typeof value === "object" && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) collect(item, found, isTensor);
  }
}

const isTensor = (value: unknown): value is Tensor =>
  typeof value === "object" && value !== null && (value as { isTensor?: boolean }).isTensor === true;

/**
 * Runs `fn` and frees every tensor made inside, except those in the result (a tensor, or arrays and plain objects of them) and those
 * passed to `keep`. Synchronous only: a Promise result is an error, because other code would run inside the open scope.
 */
export function scope<T>(fn: () => T): T {
  const own: Scope = { tensors: new Set(), nodes: new Set() };
  stack.push(own);
  let result: T;
  try {
    result = fn();
    if (typeof (result as { then?: unknown } | null | undefined)?.then === "function") {
      throw new TypeError(
        "[scope] the function returned a Promise; scope() is synchronous, open one scope per synchronous part",
      );
    }
  } catch (error) {
    stack.pop();
    for (const node of own.nodes) node.dispose();
    for (const tensor of own.tensors) tensor.dispose();
    throw error;
  }
  stack.pop();
  const kept = new Set<Tensor>();
  collect(result, kept, isTensor);
  const parent = stack[stack.length - 1];
  let graphEscapes = false;
  for (const tensor of kept) {
    if (tensor.node !== undefined) graphEscapes = true;
    if (!own.tensors.delete(tensor)) continue;
    if (parent) parent.tensors.add(tensor);
    else tensor.freeWhenCollected();
  }
  for (const node of own.nodes) {
    if (!graphEscapes) node.dispose();
    else parent?.nodes.add(node);
  }
  for (const tensor of own.tensors) tensor.dispose();
  return result;
}
