import * as v from "valibot";
import type { Engine } from "./engine-types.js";

function isEngine(value: unknown): value is Engine {
  return typeof value === "object" && value !== null && typeof (value as Engine).stream === "function";
}

const handlerEntries = {
  /** Served under /v1/models, and the `model` of requests. With several engines, their keys are the names. @default "default" */
  modelName: v.optional(v.pipe(v.string(), v.minLength(1))),
  /** Key or keys that open /v1; clients send one as `Authorization: Bearer …`. @default none: open */
  apiKey: v.optional(
    v.union([v.pipe(v.string(), v.minLength(1)), v.pipe(v.array(v.pipe(v.string(), v.minLength(1))), v.minLength(1))]),
  ),
  /** Most generation requests in progress at once, running and waiting; more get 429. @default 1024 */
  maxQueue: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 1024),
  /** Browser origin that may call the API, or "*". @default none */
  corsOrigin: v.optional(v.pipe(v.string(), v.minLength(1))),
  /** Largest request body in bytes; more gets 413. @default 8 MiB */
  bodyLimitBytes: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 8 * 1024 * 1024),
  /** A silent event stream gets a comment this often, so that proxies keep it open. Milliseconds. @default 15000 */
  pingIntervalMs: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 15_000),
  /** Told of every 5xx, with its cause. @default writes one line to stderr */
  onError: v.optional(
    v.custom<(error: unknown, info: { requestId: string; route: string }) => void>(
      (value) => typeof value === "function",
      "expected a function",
    ),
  ),
};

export const fetchHandlerSchema = v.strictObject(handlerEntries);

export const serverSchema = v.strictObject({
  /** An engine, or several by model name. */
  engine: v.custom<Engine | Record<string, Engine>>(
    (value) =>
      isEngine(value) ||
      (typeof value === "object" &&
        value !== null &&
        Object.keys(value).length > 0 &&
        Object.values(value).every(isEngine)),
    "expected an engine, or engines by model name",
  ),
  /** Address to listen on. @default "127.0.0.1" */
  host: v.optional(v.pipe(v.string(), v.minLength(1)), "127.0.0.1"),
  /** 0 = any free port. @default 23333 */
  port: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(65535)), 23333),
  ...handlerEntries,
});

export type FetchHandlerOptions = v.InferInput<typeof fetchHandlerSchema>;
export type ServerOptions = v.InferInput<typeof serverSchema>;
export type HandlerSettings = v.InferOutput<typeof fetchHandlerSchema>;

/** One engine under `modelName`, or several under their keys. */
export function namedEngines(
  engine: Engine | Record<string, Engine>,
  modelName: string | undefined,
): Map<string, Engine> {
  if (isEngine(engine)) return new Map([[modelName ?? "default", engine]]);
  return new Map(Object.entries(engine));
}
