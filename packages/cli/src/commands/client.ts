import { NetworkError, OptionsError } from "@llm/core";
import { clientRequestSchema, clientSchema, createClient } from "@llm/serve";
import * as v from "valibot";
import { type Answer, converse } from "../conversation.js";
import { defineCommand } from "../define-command.js";

export const ClientFlags = v.strictObject({
  /** System message. @default none */
  system: v.optional(v.string()),
  /** Continue plain text instead of answering. @default false */
  raw: v.optional(v.boolean(), false),
  /** Print the names of the served models and end. @default false */
  models: v.optional(v.boolean(), false),
});

export const client = defineCommand({
  name: "client",
  description:
    "Talks to a model behind an OpenAI-compatible URL, such as that of `llm serve`. At a terminal it is a dialogue (/reset,\n/system, /exit); with a prompt, or text on stdin, it answers once and ends. The key may also be in LLM_API_KEY.",
  arguments: [{ name: "prompt", description: "ask this and end" }],
  groups: {
    own: { title: "Options", schema: ClientFlags, docs: "cli.ClientFlags", complete: true },
    client: { title: "Server", schema: clientSchema, docs: "serve.clientSchema", rename: { baseUrl: "url" } },
    request: {
      title: "Sampling",
      schema: clientRequestSchema,
      docs: "serve.clientRequestSchema",
      omit: { signal: "Ctrl-C", tools: "objects; use the API" },
    },
  },
  examples: [
    ["llm client", "a dialogue with the server on port 23333"],
    ['llm client --url http://127.0.0.1:8000 --model tuned "What is 165+833?"', "one answer of one of its models"],
    ["llm client --models", "which models it serves"],
  ],
  async run({ args, values: { own, client: options, request }, signal, terminal }) {
    const key = options.apiKey ?? process.env["LLM_API_KEY"];
    const server = createClient({ ...options, ...(key ? { apiKey: key } : {}) });
    const names = await server.models();
    if (own.models) {
      for (const name of names) terminal.result(name, { type: "model", name });
      return 0;
    }
    const name = options.model ?? names[0];
    if (name === undefined)
      throw new NetworkError(`[llm client] ${server.baseUrl} serves no model`, { url: server.baseUrl });
    if (!names.includes(name))
      throw new OptionsError(
        `[llm client] --model: ${server.baseUrl} serves ${names.join(", ")}, got ${JSON.stringify(name)}`,
      );
    const answer: Answer = async function* (messages, abort) {
      const settings = { ...request, signal: abort };
      const events = own.raw
        ? server.complete(messages.map(({ content }) => content ?? "").join("\n"), settings)
        : server.chat(messages, settings);
      for await (const event of events) {
        if (event.type === "text-delta") yield event;
        else yield { type: "finish", reason: event.reason, tokens: event.usage.completionTokens };
      }
    };
    return converse({
      answer,
      system: own.system,
      prompt: args[0],
      history: !own.raw,
      signal,
      terminal,
      greeting: `${name} at ${server.baseUrl}`,
    });
  },
});
