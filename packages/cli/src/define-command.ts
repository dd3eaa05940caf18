/** What a command is: arguments, groups of flags that come from option schemas, examples, and what it does. */
import type * as v from "valibot";
import type { FlagGroup } from "./flags.js";
import type { Terminal } from "./terminal.js";

export type FlagGroups = Readonly<Record<string, FlagGroup>>;

export interface CommandArgument {
  name: string;
  description: string;
  required?: boolean;
  /** Takes the rest; only the last one may. */
  variadic?: boolean;
}

/** What the user gave, by group: only flags that were written (groups with `complete` have their defaults filled in). */
export type FlagValues<G extends FlagGroups> = {
  [K in keyof G]: G[K]["complete"] extends true ? v.InferOutput<G[K]["schema"]> : Partial<v.InferInput<G[K]["schema"]>>;
};

export interface CommandInput<G extends FlagGroups> {
  args: string[];
  values: FlagValues<G>;
  /** Aborted by Ctrl-C, SIGTERM, or when nobody reads the output any more. */
  signal: AbortSignal;
  terminal: Terminal;
}

export interface CommandDefinition<G extends FlagGroups> {
  name: string;
  /** Shown above the flags. */
  description: string;
  arguments: readonly CommandArgument[];
  groups: G;
  /** What to type, and what it does. */
  examples: readonly (readonly [command: string, about: string])[];
  /** @returns the exit code; nothing = 0 */
  run(input: CommandInput<G>): Promise<number | void>;
}

/** Checks a command's types; the value is returned as it is. */
export function defineCommand<const G extends FlagGroups>(definition: CommandDefinition<G>): CommandDefinition<G> {
  return definition;
}
