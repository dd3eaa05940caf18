import * as v from "valibot";

/**
 * The bodies this server takes, as schemas: they validate requests and describe themselves in /openapi.json.
 * Keys are OpenAI's, except where the description says "extension".
 */

const probability = v.pipe(v.number(), v.gtValue(0), v.maxValue(1));
const penalty = v.pipe(v.number(), v.minValue(-2), v.maxValue(2));
const tokenId = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const count = (low: number, high: number) => v.pipe(v.number(), v.safeInteger(), v.minValue(low), v.maxValue(high));
const stopText = v.pipe(v.string(), v.minLength(1));

const samplingEntries = {
  model: v.pipe(v.string(), v.description("Name of a served model, see /v1/models.")),
  stream: v.optional(
    v.pipe(v.boolean(), v.description("Send the answer as server-sent events while it is generated.")),
    false,
  ),
  stream_options: v.optional(
    v.strictObject({
      include_usage: v.optional(
        v.pipe(v.boolean(), v.description("Send one more chunk with the token counts, before [DONE].")),
        false,
      ),
      include_obfuscation: v.optional(v.pipe(v.literal(false), v.description("Only false: chunks are never padded."))),
    }),
  ),
  n: v.optional(v.pipe(count(1, 128), v.description("Answers per prompt.")), 1),
  temperature: v.optional(
    v.pipe(v.number(), v.minValue(0), v.maxValue(2), v.description("0 = always the likeliest token.")),
    1,
  ),
  top_p: v.optional(
    v.pipe(probability, v.description("Sample from the smallest set of tokens whose probability reaches this.")),
    1,
  ),
  frequency_penalty: v.optional(
    v.pipe(penalty, v.description("Subtracted from a token's logit for each time it was generated.")),
    0,
  ),
  presence_penalty: v.optional(
    v.pipe(penalty, v.description("Subtracted from the logit of each token generated already.")),
    0,
  ),
  seed: v.optional(
    v.pipe(v.number(), v.safeInteger(), v.description("Same seed, same request: same answer. Absent = random.")),
  ),
  stop: v.optional(
    v.pipe(
      v.union([stopText, v.pipe(v.array(stopText), v.minLength(1), v.maxLength(4))]),
      v.description("Up to 4 texts that end the answer; not part of it."),
    ),
  ),
  top_k: v.optional(
    v.pipe(count(0, 2 ** 31 - 1), v.description("Extension. Sample from the k likeliest tokens; 0 = all.")),
    0,
  ),
  min_p: v.optional(
    v.pipe(
      v.number(),
      v.minValue(0),
      v.ltValue(1),
      v.description("Extension. Drop tokens less likely than this × the likeliest."),
    ),
    0,
  ),
  repetition_penalty: v.optional(
    v.pipe(
      v.number(),
      v.gtValue(0),
      v.maxValue(10),
      v.description("Extension. Divides the logits of tokens seen in prompt or answer."),
    ),
    1,
  ),
  ignore_eos: v.optional(v.pipe(v.boolean(), v.description("Extension. Go on after the model's end token.")), false),
  stop_token_ids: v.optional(
    v.pipe(v.array(tokenId), v.maxLength(256), v.description("Extension. Token ids that end the answer.")),
    [],
  ),
};

const contentPart = v.looseObject({ type: v.string(), text: v.optional(v.string()) });

export const messageSchema = v.strictObject({
  role: v.pipe(
    v.picklist(["system", "developer", "user", "assistant", "tool"]),
    v.description("developer is rendered as system."),
  ),
  content: v.nullish(v.union([v.string(), v.array(contentPart)])),
  name: v.nullish(v.string()),
  reasoning_content: v.nullish(v.string()),
  tool_calls: v.nullish(
    v.array(
      v.looseObject({
        id: v.optional(v.string()),
        type: v.optional(v.literal("function")),
        function: v.looseObject({
          name: v.string(),
          arguments: v.union([v.string(), v.record(v.string(), v.unknown())]),
        }),
      }),
    ),
  ),
  tool_call_id: v.nullish(v.string()),
  // What clients send back with an assistant's message of this server:
  refusal: v.optional(v.null()),
  annotations: v.optional(v.pipe(v.array(v.unknown()), v.maxLength(0))),
});

export const chatRequestSchema = v.strictObject({
  messages: v.pipe(
    v.array(messageSchema),
    v.minLength(1),
    v.description("The conversation. Rendered by the model's own chat template."),
  ),
  ...samplingEntries,
  max_tokens: v.optional(
    v.pipe(count(1, 2 ** 31 - 1), v.description("Most tokens to generate. Absent = up to the model's length.")),
  ),
  max_completion_tokens: v.optional(v.pipe(count(1, 2 ** 31 - 1), v.description("The newer name of max_tokens."))),
  logprobs: v.optional(v.pipe(v.boolean(), v.description("Report the log-probability of each token.")), false),
  top_logprobs: v.optional(v.pipe(count(0, 20), v.description("And of this many alternatives; needs logprobs."))),
  tools: v.optional(
    v.pipe(
      v.array(
        v.strictObject({
          type: v.literal("function"),
          function: v.strictObject({
            name: v.pipe(v.string(), v.minLength(1)),
            description: v.optional(v.string()),
            parameters: v.optional(v.record(v.string(), v.unknown())),
            strict: v.nullish(v.literal(false)),
          }),
        }),
      ),
      v.description("Shown to the model by its chat template; the answer's text is returned as the model writes it."),
    ),
  ),
  tool_choice: v.optional(v.pipe(v.picklist(["auto", "none"]), v.description("none leaves the tools out."))),
  chat_template_kwargs: v.optional(
    v.pipe(v.record(v.string(), v.unknown()), v.description("Extension. Further variables for the chat template.")),
  ),
});

export const completionRequestSchema = v.strictObject({
  prompt: v.pipe(
    v.union([
      v.string(),
      v.pipe(v.array(v.string()), v.minLength(1), v.maxLength(2048)),
      v.pipe(v.array(tokenId), v.minLength(1)),
      v.pipe(v.array(v.pipe(v.array(tokenId), v.minLength(1))), v.minLength(1), v.maxLength(2048)),
    ]),
    v.description("Text, texts, token ids, or lists of token ids. Choices come in order of the prompts."),
  ),
  ...samplingEntries,
  max_tokens: v.optional(
    v.pipe(count(0, 2 ** 31 - 1), v.description("Most tokens to generate; 0 only with echo. Absent = 16.")),
  ),
  logprobs: v.optional(
    v.pipe(count(0, 20), v.description("Report the log-probability of each token and of this many alternatives.")),
  ),
  echo: v.optional(
    v.pipe(v.boolean(), v.description("Begin the answer with the prompt; with logprobs, the prompt's too.")),
    false,
  ),
});

export type ChatRequest = v.InferOutput<typeof chatRequestSchema>;
export type CompletionRequest = v.InferOutput<typeof completionRequestSchema>;
export type WireMessage = v.InferOutput<typeof messageSchema>;

/** A field outside the schemas: `true` = accepted and without effect; a text = refused, and why. */
type FieldRule = (value: unknown, body: Record<string, unknown>) => true | string;

const harmless: FieldRule = () => true;
const refused =
  (why: string): FieldRule =>
  () =>
    why;
const only =
  (test: (value: unknown, body: Record<string, unknown>) => boolean, why: string): FieldRule =>
  (value, body) =>
    test(value, body) || why;

const commonRules: Record<string, FieldRule> = {
  user: harmless,
  metadata: harmless,
  store: harmless,
  service_tier: harmless,
  safety_identifier: harmless,
  prompt_cache_key: harmless,
  prompt_cache_retention: harmless,
  prompt_cache_options: harmless,
  logit_bias: only(
    (value) => typeof value === "object" && value !== null && Object.keys(value).length === 0,
    "logit_bias is not supported",
  ),
};

export const chatFieldRules: Record<string, FieldRule> = {
  ...commonRules,
  parallel_tool_calls: only((value) => value === true, "parallel_tool_calls can only be true"),
  response_format: only(
    (value) => (value as { type?: unknown } | null)?.type === "text",
    'response_format can only be {"type":"text"}: structured output is not supported',
  ),
  tool_choice: only(
    (value) => value === "auto" || value === "none",
    'tool_choice can only be "auto" or "none": forcing a call is not supported',
  ),
  modalities: only(
    (value) => Array.isArray(value) && value.length === 1 && value[0] === "text",
    'modalities can only be ["text"]',
  ),
  audio: refused("audio is not supported"),
  prediction: refused("prediction is not supported"),
  reasoning_effort: refused("reasoning_effort is not supported; template variables go into chat_template_kwargs"),
  moderation: refused("moderation is not supported"),
  verbosity: refused("verbosity is not supported"),
  web_search_options: refused("web_search_options is not supported"),
  functions: refused("functions is not supported; use tools"),
  function_call: refused("function_call is not supported; use tool_choice"),
};

export const completionFieldRules: Record<string, FieldRule> = {
  ...commonRules,
  best_of: only(
    (value, body) => value === (body.n ?? 1),
    "best_of can only equal n: choosing among hidden answers is not supported",
  ),
  suffix: only((value) => value === "", "suffix is not supported"),
};
