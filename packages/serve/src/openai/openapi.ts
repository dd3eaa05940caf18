import { jsonSchema } from "./json-schema.js";
import { chatRequestSchema, completionRequestSchema } from "./requests.js";
import {
  chatChunkSchema,
  chatResponseSchema,
  completionResponseSchema,
  errorSchema,
  modelListSchema,
  modelSchema,
} from "./responses.js";

const ref = (name: string) => ({ $ref: `#/components/schemas/${name}` });
const jsonContent = (schema: unknown) => ({ "application/json": { schema } });
const plain = (description: string, type: string) => ({
  description,
  content: { [type]: { schema: { type: "string" } } },
});
const errorResponse = (description: string) => ({ description, content: jsonContent(ref("Error")) });

const generationErrors = {
  400: errorResponse(
    "The request is malformed, too long, or asks for something that this server cannot honour; `param` names it.",
  ),
  404: errorResponse("No such model."),
  413: errorResponse("The body is too large."),
  415: errorResponse("The body is not application/json."),
  429: errorResponse("The queue is full; Retry-After says when to try again."),
  503: errorResponse("The engine has stopped, or the server is shutting down."),
};

const unauthorized = { 401: errorResponse("The API key is missing or wrong.") };

/**
 * The API as an OpenAPI 3.1 document, from the schemas that requests are checked with.
 * @param version   of this package
 * @param needsKey  whether /v1 is protected by API keys
 */
export function openApiDocument(version: string, needsKey: boolean): Record<string, unknown> {
  const protection = needsKey ? { security: [{ apiKey: [] }] } : {};
  const errors = needsKey ? unauthorized : {};
  const generation = (summary: string, request: string, answer: string, chunk: string) => ({
    post: {
      summary,
      ...protection,
      requestBody: { required: true, content: jsonContent(ref(request)) },
      responses: {
        200: {
          description: "The answer; with `stream`, server-sent events that end with `data: [DONE]`.",
          content: { ...jsonContent(ref(answer)), "text/event-stream": { schema: ref(chunk) } },
        },
        ...errors,
        ...generationErrors,
      },
    },
  });
  return {
    openapi: "3.1.0",
    info: { title: "@llm/serve", version, description: "A language model over OpenAI's API." },
    paths: {
      "/v1/chat/completions": generation("Continue a conversation", "ChatRequest", "ChatResponse", "ChatChunk"),
      "/v1/completions": generation("Continue a text", "CompletionRequest", "CompletionResponse", "CompletionResponse"),
      "/v1/models": {
        get: {
          summary: "List the served models",
          ...protection,
          responses: { 200: { description: "The models.", content: jsonContent(ref("ModelList")) }, ...errors },
        },
      },
      "/v1/models/{id}": {
        get: {
          summary: "Describe a model",
          ...protection,
          parameters: [{ name: "id", in: "path", required: true, schema: { type: "string" } }],
          responses: {
            200: { description: "The model.", content: jsonContent(ref("Model")) },
            ...errors,
            404: errorResponse("No such model."),
          },
        },
      },
      "/health": {
        get: {
          summary: "Whether the engines can compute",
          responses: {
            200: {
              description: "They can.",
              content: jsonContent({ type: "object", properties: { status: { const: "ok" } } }),
            },
            503: {
              description: "One has stopped, or the server is shutting down.",
              content: jsonContent({
                type: "object",
                properties: { status: { enum: ["dead", "draining"] }, error: { type: "string" } },
              }),
            },
          },
        },
      },
      "/metrics": {
        get: {
          summary: "Counters and times for Prometheus",
          responses: { 200: plain("Prometheus text format 0.0.4.", "text/plain") },
        },
      },
      "/version": {
        get: {
          summary: "Version of the server",
          responses: {
            200: {
              description: "The version.",
              content: jsonContent({ type: "object", properties: { version: { type: "string" } } }),
            },
          },
        },
      },
      "/openapi.json": {
        get: {
          summary: "This document",
          responses: { 200: { description: "OpenAPI 3.1.", content: jsonContent({ type: "object" }) } },
        },
      },
      "/": {
        get: {
          summary: "A page that shows the API",
          responses: { 200: plain("One self-contained page.", "text/html") },
        },
      },
    },
    components: {
      schemas: {
        ChatRequest: jsonSchema(chatRequestSchema),
        ChatResponse: jsonSchema(chatResponseSchema),
        ChatChunk: jsonSchema(chatChunkSchema),
        CompletionRequest: jsonSchema(completionRequestSchema),
        CompletionResponse: jsonSchema(completionResponseSchema),
        Model: jsonSchema(modelSchema),
        ModelList: jsonSchema(modelListSchema),
        Error: jsonSchema(errorSchema),
      },
      ...(needsKey && { securitySchemes: { apiKey: { type: "http", scheme: "bearer" } } }),
    },
  };
}
