/** Machine-readable kinds of failure; stable across releases. */
export type LlmErrorCode =
  | "OPTIONS"
  | "SHAPE"
  | "DTYPE"
  | "DEVICE"
  | "OUT_OF_MEMORY"
  | "DISPOSED"
  | "FORMAT"
  | "UNSUPPORTED"
  | "NUMERIC"
  | "PLAN"
  | "IO"
  | "NETWORK"
  | "NATIVE_MISSING"
  | "DUPLICATE_CORE"
  | "ENGINE_DEAD"
  | "QUEUE_FULL"
  | "INTERNAL";

const BRAND: unique symbol = Symbol.for("@llm/core.LlmError") as never;

/**
 * Base of every error that this SDK throws on purpose.
 * `code` says which kind, `data` holds the facts (shapes, paths, byte counts), `message` is for people and starts with
 * the place: `[rmsNorm] weight must be [4096], got [2048]`. Identity is by brand, not `instanceof`, so that two copies of
 * the package in one process still recognise each other's errors.
 */
export class LlmError extends Error {
  readonly code: LlmErrorCode;
  readonly data: Readonly<Record<string, unknown>>;
  readonly [BRAND] = true;

  constructor(code: LlmErrorCode, message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.data = data;
    this.name = new.target.name;
  }

  /** True for any LlmError, also one from another copy of this package; with `code`, only for that kind. */
  static isInstance(value: unknown, code?: LlmErrorCode): value is LlmError {
    return (
      typeof value === "object" &&
      value !== null &&
      (value as Record<symbol, unknown>)[BRAND] === true &&
      (code === undefined || (value as LlmError).code === code)
    );
  }
}

/** An options object did not match its schema; `data.issues` lists path and message of each fault. */
export class OptionsError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("OPTIONS", message, data, cause);
  }
}

/** Tensor shapes that do not fit together; the message names the op, what was expected and what came. */
export class ShapeError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("SHAPE", message, data, cause);
  }
}

/** A dtype that the op or format does not take. */
export class DTypeError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("DTYPE", message, data, cause);
  }
}

/** A device that is absent, or tensors on different devices. */
export class DeviceError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("DEVICE", message, data, cause);
  }
}

/** Memory ran out. `data`: requestedBytes, liveBytes; the message says what to turn down. Recoverable. */
export class OutOfMemoryError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("OUT_OF_MEMORY", message, data, cause);
  }
}

/** A tensor, model or engine was used after it was disposed. */
export class DisposedError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("DISPOSED", message, data, cause);
  }
}

/** A file whose content breaks its format; `data.file` and, where known, `data.offset` or `data.line`. */
export class FormatError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("FORMAT", message, data, cause);
  }
}

/** Something valid that this version cannot do; the message names the nearest thing that works. */
export class UnsupportedError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("UNSUPPORTED", message, data, cause);
  }
}

/** NaN or infinity where a finite number is required, or an id outside its table. */
export class NumericError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("NUMERIC", message, data, cause);
  }
}

/** Reading a value, or branching on one, while a Plan is being recorded; or replaying a Plan that cannot be. */
export class PlanError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("PLAN", message, data, cause);
  }
}

/** A file could not be read or written. */
export class IoError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("IO", message, data, cause);
  }
}

/** A server could not be reached or answered with an error. `data.status`, `data.url`. */
export class NetworkError extends LlmError {
  constructor(message: string, data: Record<string, unknown> = {}, cause?: unknown) {
    super("NETWORK", message, data, cause);
  }
}
