import * as v from "valibot";

/** What this server answers with, as schemas: they describe themselves in /openapi.json and the tests hold the answers to them. */

const usageSchema = v.strictObject({
  prompt_tokens: v.number(),
  completion_tokens: v.number(),
  total_tokens: v.number(),
  prompt_tokens_details: v.strictObject({
    cached_tokens: v.pipe(v.number(), v.description("Prompt tokens found in the prefix cache.")),
  }),
});

const bareLogprob = {
  token: v.pipe(v.string(), v.description("Text, or bytes:\\xe4… when the token is not whole characters.")),
  logprob: v.number(),
  bytes: v.nullable(v.array(v.number())),
};

const tokenLogprobSchema = v.strictObject({ ...bareLogprob, top_logprobs: v.array(v.strictObject(bareLogprob)) });

const chatLogprobsSchema = v.nullable(
  v.strictObject({ content: v.nullable(v.array(tokenLogprobSchema)), refusal: v.null() }),
);

const head = {
  id: v.string(),
  created: v.pipe(v.number(), v.description("Unix time in seconds.")),
  model: v.string(),
  system_fingerprint: v.string(),
};

const finishReason = v.picklist(["stop", "length"]);

export const chatResponseSchema = v.strictObject({
  ...head,
  object: v.literal("chat.completion"),
  choices: v.array(
    v.strictObject({
      index: v.number(),
      message: v.strictObject({ role: v.literal("assistant"), content: v.string(), refusal: v.null() }),
      logprobs: chatLogprobsSchema,
      finish_reason: finishReason,
    }),
  ),
  usage: usageSchema,
});

export const chatChunkSchema = v.strictObject({
  ...head,
  object: v.literal("chat.completion.chunk"),
  choices: v.array(
    v.strictObject({
      index: v.number(),
      delta: v.strictObject({
        role: v.optional(v.literal("assistant")),
        content: v.optional(v.string()),
        refusal: v.optional(v.null()),
      }),
      logprobs: chatLogprobsSchema,
      finish_reason: v.nullable(finishReason),
    }),
  ),
  usage: v.optional(v.nullable(usageSchema)),
});

const completionLogprobsSchema = v.nullable(
  v.strictObject({
    tokens: v.array(v.string()),
    token_logprobs: v.array(v.nullable(v.number())),
    top_logprobs: v.array(v.nullable(v.record(v.string(), v.number()))),
    text_offset: v.pipe(v.array(v.number()), v.description("Where each token's text begins, in characters.")),
  }),
);

export const completionResponseSchema = v.strictObject({
  ...head,
  object: v.literal("text_completion"),
  choices: v.array(
    v.strictObject({
      index: v.number(),
      text: v.string(),
      logprobs: completionLogprobsSchema,
      finish_reason: v.nullable(finishReason),
    }),
  ),
  usage: v.optional(v.nullable(usageSchema)),
});

export const modelSchema = v.strictObject({
  id: v.string(),
  object: v.literal("model"),
  created: v.number(),
  owned_by: v.string(),
  max_model_len: v.number(),
});

export const modelListSchema = v.strictObject({ object: v.literal("list"), data: v.array(modelSchema) });

export const errorSchema = v.strictObject({
  error: v.strictObject({
    message: v.string(),
    type: v.string(),
    param: v.nullable(v.string()),
    code: v.nullable(v.string()),
  }),
});

export type WireUsage = v.InferOutput<typeof usageSchema>;
export type ChatResponse = v.InferOutput<typeof chatResponseSchema>;
export type ChatLogprobs = v.InferOutput<typeof chatLogprobsSchema>;
export type TokenLogprobEntry = v.InferOutput<typeof tokenLogprobSchema>;
export type CompletionResponse = v.InferOutput<typeof completionResponseSchema>;
export type CompletionLogprobs = v.InferOutput<typeof completionLogprobsSchema>;
export type ModelEntry = v.InferOutput<typeof modelSchema>;
