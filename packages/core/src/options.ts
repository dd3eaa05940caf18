import * as v from "valibot";
import { OptionsError } from "./errors.js";

/**
 * Parses an options object at a package's border: fills defaults, rejects unknown keys (use `v.strictObject`).
 * @param where  name of the function, put in brackets before the message
 * @throws {OptionsError} with every issue as `path: message`
 */
export function parseOptions<TSchema extends v.GenericSchema>(
  schema: TSchema,
  value: unknown,
  where: string,
): v.InferOutput<TSchema> {
  const result = v.safeParse(schema, value ?? {});
  if (result.success) return result.output;
  const issues = result.issues.map((issue) => ({
    path: v.getDotPath(issue) ?? "",
    message: issue.message,
  }));
  const text = issues.map(({ path, message }) => (path ? `${path}: ${message}` : message)).join("; ");
  throw new OptionsError(`[${where}] ${text}`, { issues });
}
