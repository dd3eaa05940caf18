/** A conversation at the terminal, with whoever answers: a local engine or a server. */
import { createInterface } from "node:readline";
import { OptionsError } from "@llm/core";
import type { ChatMessage } from "@llm/models";
import { exitCodes } from "./command-list.js";
import { formatDuration, type Terminal } from "./terminal.js";

/** What an answer consists of. */
export type AnswerEvent = { type: "text-delta"; text: string } | { type: "finish"; reason: string; tokens: number };

/** Answers the last message; an aborted signal ends the answer. */
export type Answer = (messages: ChatMessage[], signal: AbortSignal) => AsyncIterable<AnswerEvent>;

const help = `/reset           forget the conversation
/system <text>   forget it and set the system message; without text, none
/exit            leave (also Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C ends an answer.`;

/** The messages so far, and the commands that change them. */
export class Conversation {
  readonly messages: ChatMessage[] = [];
  #system: string | undefined;

  constructor(system: string | undefined) {
    this.#system = system;
    this.reset();
  }

  /** Forgets everything but the system message. */
  reset(): void {
    this.messages.length = 0;
    if (this.#system !== undefined) this.messages.push({ role: "system", content: this.#system });
  }

  /** Runs a line that starts with "/". @returns what to say, or "exit" */
  command(line: string): { say: string } | "exit" {
    const [, name, rest] = /^\/(\S*)\s*(.*)$/s.exec(line)!;
    if (name === "exit" || name === "quit") return "exit";
    if (name === "reset") {
      this.reset();
      return { say: "forgotten" };
    }
    if (name === "system") {
      this.#system = rest === "" ? undefined : rest;
      this.reset();
      return { say: rest === "" ? "no system message" : "system message set" };
    }
    return { say: name === "help" ? help : `no command /${name}\n${help}` };
  }
}

/** Streams one answer to stdout and appends it to the conversation. @returns its text */
async function say(conversation: Conversation, answer: Answer, signal: AbortSignal, terminal: Terminal): Promise<void> {
  const began = performance.now();
  let firstAt: number | undefined;
  let text = "";
  let tokens = 0;
  for await (const event of answer([...conversation.messages], signal)) {
    if (event.type === "text-delta") {
      firstAt ??= performance.now();
      text += event.text;
      terminal.print(event.text);
    } else tokens = event.tokens;
  }
  if (!text.endsWith("\n")) terminal.print("\n");
  conversation.messages.push({ role: "assistant", content: text });
  const now = performance.now();
  const speed =
    tokens > 1 && firstAt !== undefined
      ? `, ${(((tokens - 1) * 1000) / Math.max(now - firstAt, 1)).toFixed(1)} tokens/s`
      : "";
  terminal.note(`(${tokens} tokens${speed}, first after ${formatDuration((firstAt ?? now) - began)})`);
}

async function readAll(input: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of input) chunks.push(chunk);
  return Buffer.concat(chunks).toString("utf8");
}

export interface ConverseOptions {
  answer: Answer;
  system: string | undefined;
  /** Ask this and end. */
  prompt: string | undefined;
  /** Turns are remembered; else each line is asked alone. */
  history: boolean;
  signal: AbortSignal;
  terminal: Terminal;
  greeting: string;
}

/**
 * One question when there is a prompt or stdin is a pipe, else a dialogue.
 * @throws {OptionsError} an empty question
 */
export async function converse(options: ConverseOptions): Promise<number> {
  const { answer, system, signal, terminal, history } = options;
  const conversation = new Conversation(system);
  if (options.prompt !== undefined || !process.stdin.isTTY) {
    const prompt = options.prompt ?? (await readAll(process.stdin)).replace(/\r?\n$/, "");
    if (prompt === "") throw new OptionsError("[llm] expected a question as an argument or on stdin, got nothing");
    conversation.messages.push({ role: "user", content: prompt });
    await say(conversation, answer, signal, terminal);
    signal.throwIfAborted();
    return exitCodes.ok;
  }

  const { dim, cyan } = terminal.colors;
  terminal.print(`${options.greeting}\n${dim("/help lists the commands, Ctrl-D leaves")}\n`);
  const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: cyan("> ") });
  let speaking: AbortController | undefined;
  let interrupted = false;
  // While a line is read the terminal is raw, so Ctrl-C arrives here and not as a signal.
  lines.on("SIGINT", () => {
    if (speaking) speaking.abort();
    else {
      interrupted = true;
      lines.close();
    }
  });
  signal.addEventListener("abort", () => lines.close(), { once: true });
  let pending = "";
  lines.prompt();
  for await (const line of lines) {
    if (line.endsWith("\\")) {
      pending += `${line.slice(0, -1)}\n`;
      continue;
    }
    const text = pending + line;
    pending = "";
    if (text.startsWith("/")) {
      const done = conversation.command(text);
      if (done === "exit") break;
      terminal.print(`${dim(done.say)}\n`);
    } else if (text.trim() !== "") {
      if (!history) conversation.reset();
      conversation.messages.push({ role: "user", content: text });
      speaking = new AbortController();
      try {
        await say(conversation, answer, AbortSignal.any([signal, speaking.signal]), terminal);
      } catch (error) {
        if (!speaking.signal.aborted) throw error;
        terminal.print("\n");
      }
      speaking = undefined;
    }
    lines.prompt();
  }
  lines.close();
  return interrupted || signal.aborted ? exitCodes.interrupted : exitCodes.ok;
}
