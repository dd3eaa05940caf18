/** Parses the command line, runs a command and turns its end into an exit code. */
import { Command, CommanderError } from "commander";
import { type CommandEntry, commandList, exitCodes } from "./command-list.js";
import type { CommandDefinition, FlagGroups } from "./define-command.js";
import type { Flag } from "./flags.js";
import { Terminal } from "./terminal.js";
import { ownVersion } from "./version.js";

/** Why a run should end before its work is done. */
export class Stop {
  readonly controller = new AbortController();
  /** Ctrl-C or SIGTERM came. */
  interrupted = false;
  /** Nobody reads the output any more. */
  closed = false;
}

interface Run {
  terminal: Terminal;
  stop: Stop;
  /** Flags of the command that runs. */
  flags: readonly Flag[];
}

/** Stops a run at Ctrl-C and SIGTERM (a second one ends the process at once), and when the reader of the output goes away. */
export function watchProcess(): Stop {
  const stop = new Stop();
  const onSignal = (): void => {
    if (stop.interrupted) process.exit(exitCodes.interrupted);
    stop.interrupted = true;
    stop.controller.abort(new Error("interrupted"));
  };
  const onError = (error: NodeJS.ErrnoException): void => {
    if (error.code !== "EPIPE") throw error;
    stop.closed = true;
    stop.controller.abort(new Error("nobody reads the output"));
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  process.stdout.on("error", onError);
  process.stderr.on("error", onError);
  return stop;
}

/**
 * Runs `llm` with these arguments (without node and script).
 * @returns the exit code: 0 ok, 1 failure, 2 usage, 130 interrupted
 */
export async function runCli(argv: readonly string[], stop: Stop = new Stop()): Promise<number> {
  const run: Run = { terminal: new Terminal(), stop, flags: [] };
  try {
    return await parse(argv, run);
  } catch (error) {
    if (stop.closed) return exitCodes.ok;
    if (stop.interrupted) {
      run.terminal.endProgress();
      process.stderr.write("interrupted\n");
      return exitCodes.interrupted;
    }
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
    return report(error, run);
  }
}

/** Says what went wrong in one message; LLM_DEBUG=1 shows the stack. */
async function report(error: unknown, { terminal, flags }: Run): Promise<number> {
  const [{ LlmError }, { explainOptions }] = await Promise.all([import("@llm/core"), import("./flags.js")]);
  const ours = LlmError.isInstance(error);
  const usage = ours && error.code === "OPTIONS";
  let message = error instanceof Error ? error.message : String(error);
  if (usage) message = explainOptions(message, error.data["issues"], flags);
  else if (!ours) message = `${(error as Error | undefined)?.name ?? "Error"}: ${message} (LLM_DEBUG=1 shows where)`;
  const { red } = terminal.errorColors;
  terminal.endProgress();
  process.stderr.write(`${red("error")} ${message}\n`);
  if ((process.env["LLM_DEBUG"] ?? "") !== "" && error instanceof Error)
    process.stderr.write(`${error.stack ?? ""}\n${error.cause === undefined ? "" : `cause: ${String(error.cause)}\n`}`);
  return usage ? exitCodes.usage : exitCodes.failure;
}

async function parse(argv: readonly string[], run: Run): Promise<number> {
  const { red } = run.terminal.errorColors;
  const program = new Command("llm");
  program
    .description("Fine-tune, distil, quantize, serve and evaluate language models.")
    .version(ownVersion(), "-V, --version", "print the version")
    .helpOption("-h, --help", "show this help")
    .helpCommand("help [command]", "show the help of a command")
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, `${red("error")} `)) })
    .showHelpAfterError("(--help shows all flags)")
    .addHelpText("after", "\nExit codes: 0 ok, 1 failure, 2 usage, 130 interrupted.");

  let code = 0;
  const [first, second] = argv;
  const wanted = first === "help" ? second : first;
  for (const entry of commandList) {
    const command = program.command(entry.name).summary(entry.summary).description(entry.summary);
    if (entry.name === wanted) {
      await fill(command, entry, run, (ended) => {
        code = ended;
      });
    }
  }
  if (argv.length === 0) {
    program.outputHelp({ error: true });
    return exitCodes.usage;
  }
  await program.parseAsync(argv, { from: "user" });
  return code;
}

/** Gives a command its arguments and flags; only the one that is asked for is loaded. */
async function fill(command: Command, entry: CommandEntry, run: Run, end: (code: number) => void): Promise<void> {
  const [definition, { addFlags, readFlags }]: [CommandDefinition<FlagGroups>, typeof import("./flags.js")] =
    await Promise.all([entry.load(), import("./flags.js")]);
  command.description(definition.description);
  for (const { name, description, required, variadic } of definition.arguments) {
    const word = variadic ? `${name}...` : name;
    command.argument(required ? `<${word}>` : `[${word}]`, description);
  }
  const flags = addFlags(command, definition.groups);
  run.flags = flags;
  const width = Math.max(...definition.examples.map(([line]) => line.length));
  const lines = definition.examples.map(([line, about]) =>
    width > 72 ? `  # ${about}\n  ${line}` : `  ${line.padEnd(width)}  # ${about}`,
  );
  command.addHelpText("after", `\nExamples:\n${lines.join("\n")}`);
  command.action(async () => {
    const values = readFlags(command, flags, definition.groups);
    const ended = await definition.run({
      args: command.args,
      values,
      signal: run.stop.controller.signal,
      terminal: run.terminal,
    });
    end(ended ?? exitCodes.ok);
  });
}
