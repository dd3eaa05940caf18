import { UnsupportedError } from "@llm/core";
import { GenerateOptionsSchema, LoadModelOptions, namedTemplates } from "@llm/models";
import { createEngine, EngineOptions } from "@llm/serve";
import * as v from "valibot";
import { type Answer, converse } from "../conversation.js";
import { defineCommand } from "../define-command.js";
import { openModel } from "../open-model.js";

export const ChatFlags = v.strictObject({
  /** System message. @default none */
  system: v.optional(v.string()),
  /** Chat template: chatml, llama3, qwen_chat … or Jinja source. @default the model's own */
  template: v.optional(v.pipe(v.string(), v.nonEmpty())),
  /** Continue plain text instead of answering: for base models. @default false */
  raw: v.optional(v.boolean(), false),
  /** PEFT folder of an adapter to use. */
  adapter: v.optional(v.pipe(v.string(), v.nonEmpty())),
});

export const chat = defineCommand({
  name: "chat",
  description:
    "Talks to a model on this machine. At a terminal it is a dialogue (/reset, /system, /exit); with a prompt, or text on\nstdin, it answers once and ends.",
  arguments: [
    { name: "model", description: "folder or hub name; a PEFT folder loads its base", required: true },
    { name: "prompt", description: "ask this and end" },
  ],
  groups: {
    own: { title: "Options", schema: ChatFlags, docs: "cli.ChatFlags", complete: true },
    generate: {
      title: "Sampling",
      schema: GenerateOptionsSchema,
      docs: "models.GenerateOptionsSchema",
      omit: { signal: "Ctrl-C", logprobs: "text is shown, not probabilities" },
      commas: [],
    },
    engine: {
      title: "Engine",
      schema: EngineOptions,
      docs: "serve.EngineOptions",
      omit: { maxBatchSize: "one conversation", maxQueue: "one conversation" },
      rename: { maxTokens: "max-sequence-tokens" },
    },
    load: { title: "Loading", schema: LoadModelOptions, docs: "models.LoadModelOptions" },
  },
  examples: [
    ["llm chat ./model", "a dialogue"],
    ['llm chat ./model "What is 165+833?" --temperature 0.7', "one answer"],
    ['echo "Once upon a time" | llm chat ./model --raw --max-tokens 64', "continue a text"],
  ],
  async run({ args, values: { own, generate, engine: engineOptions, load }, signal, terminal }) {
    const [name, prompt] = args as [string, string?];
    terminal.note(`loading ${name}`);
    const model = await openModel(name, load, own.adapter);
    if (!own.raw && own.template === undefined && model.tokenizer.chatTemplate === undefined) {
      const known = Object.keys(namedTemplates).join(", ");
      throw new UnsupportedError(
        `[llm chat] ${name} has no chat template: name one with --template (${known}), or continue plain text with --raw`,
      );
    }
    signal.throwIfAborted();
    const engine = await createEngine(model, { maxBatchSize: 1, maxQueue: 1, ...engineOptions });
    const named =
      own.template !== undefined && Object.hasOwn(namedTemplates, own.template)
        ? namedTemplates[own.template]!
        : undefined;
    const stop = [...(generate.stop ?? []), ...(named?.stopStrings ?? [])];
    const answer: Answer = async function* (messages, abort) {
      const asked = own.raw
        ? messages.map(({ content }) => content ?? "").join("\n")
        : { messages, ...(own.template === undefined ? {} : { template: own.template }) };
      for await (const event of engine.generate([asked], {
        ...generate,
        ...(stop.length > 0 ? { stop } : {}),
        signal: abort,
      })) {
        if (event.type === "text-delta") yield event;
        else yield { type: "finish", reason: event.reason, tokens: event.usage.completionTokens };
      }
    };
    try {
      return await converse({
        answer,
        system: own.system,
        prompt,
        history: !own.raw,
        signal,
        terminal,
        greeting: `${name}, ${model.spec.layers} layers, ${engine.maxTokens} tokens of context`,
      });
    } finally {
      await engine.dispose();
    }
  },
});
