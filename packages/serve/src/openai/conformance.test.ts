import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { Script } from "node:vm";
import * as v from "valibot";
import { describe, expect, test } from "vitest";
import { serveSimulated } from "../../test/serve-simulated.js";
import { version } from "../http-version.js";
import { apiPage } from "../page.js";
import { chatFieldRules, chatRequestSchema, completionFieldRules, completionRequestSchema } from "./requests.js";
import {
  chatChunkSchema,
  chatResponseSchema,
  completionResponseSchema,
  errorSchema,
  modelListSchema,
} from "./responses.js";

interface Schema {
  $ref?: string;
  type?: string;
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  enum?: unknown[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
  nullable?: boolean;
}

interface Document {
  components: { schemas: Record<string, Schema> };
}

/** What is wrong with a value, by the parts of a schema that matter here; [] when nothing is. */
function faults(document: Document, schema: Schema, value: unknown, path = "$"): string[] {
  if (schema.nullable === true && value === null) return [];
  if (schema.$ref !== undefined)
    return faults(document, document.components.schemas[schema.$ref.split("/").pop()!]!, value, path);
  const options = schema.anyOf ?? schema.oneOf;
  if (options !== undefined) {
    const results = options.map((option) => faults(document, option, value, path));
    return results.find((result) => result.length === 0) ?? results[0]!;
  }
  if (schema.allOf !== undefined) return schema.allOf.flatMap((part) => faults(document, part, value, path));
  if (schema.enum !== undefined && !schema.enum.includes(value))
    return [`${path}: ${JSON.stringify(value)} is not one of ${schema.enum.join(", ")}`];
  const actual = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
  const expected = schema.type === "integer" ? "number" : schema.type;
  if (expected !== undefined && expected !== actual) return [`${path}: expected ${expected}, got ${actual}`];
  if (actual === "array")
    return (value as unknown[]).flatMap((item, i) =>
      schema.items === undefined ? [] : faults(document, schema.items, item, `${path}[${i}]`),
    );
  if (actual !== "object") return [];
  const object = value as Record<string, unknown>;
  const missing = (schema.required ?? []).filter((key) => !(key in object)).map((key) => `${path}.${key}: missing`);
  return [
    ...missing,
    ...Object.entries(object).flatMap(([key, item]) =>
      schema.properties?.[key] === undefined ? [] : faults(document, schema.properties[key], item, `${path}.${key}`),
    ),
  ];
}

const chat = { model: "simulated", messages: [{ role: "user", content: "hé" }], logprobs: true, top_logprobs: 2 };
const text = { model: "simulated", prompt: "x", logprobs: 1, echo: false };

async function exchange() {
  const { server } = await serveSimulated();
  const post = async (path: string, body: unknown) =>
    fetch(server.url + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
  const events = async (path: string, body: object) =>
    (await (await post(path, { ...body, stream: true, stream_options: { include_usage: true } })).text())
      .split("\n\n")
      .filter((event) => event.startsWith("data: {"))
      .map((event) => JSON.parse(event.slice(6)) as unknown);
  return {
    chat: (await (await post("/v1/chat/completions", chat)).json()) as unknown,
    chatChunks: await events("/v1/chat/completions", chat),
    completion: (await (await post("/v1/completions", text)).json()) as unknown,
    completionChunks: await events("/v1/completions", text),
    models: (await (await fetch(`${server.url}/v1/models`)).json()) as unknown,
    error: (await (await post("/v1/completions", {})).json()) as unknown,
  };
}

test("every answer is exactly what its own schema says", async () => {
  const answers = await exchange();
  v.parse(chatResponseSchema, answers.chat);
  v.parse(completionResponseSchema, answers.completion);
  v.parse(modelListSchema, answers.models);
  v.parse(errorSchema, answers.error);
  for (const chunk of answers.chatChunks) v.parse(chatChunkSchema, chunk);
  for (const chunk of answers.completionChunks) v.parse(completionResponseSchema, chunk);
  expect(answers.chatChunks.length).toBeGreaterThan(5);
  expect(answers.completionChunks.length).toBeGreaterThan(5);
});

describe("OpenAI's own description of its API", () => {
  const root = fileURLToPath(new URL("../../../../", import.meta.url));
  const file = `${process.env.LLM_ASSETS ?? `${root}../shared/assets`}/api-conformance/openapi.yaml`;
  const load = (): Document | string => {
    if (!existsSync(file)) return `${file} is absent`;
    try {
      return (createRequire(import.meta.url)("js-yaml") as { load(text: string): Document }).load(
        readFileSync(file, "utf8"),
      );
    } catch (error) {
      return `js-yaml is not installed: ${String(error)}`;
    }
  };
  const document = load();
  if (typeof document === "string") console.log(`skipped: ${document}`);

  test.skipIf(typeof document === "string")("fits every answer", async () => {
    const { components } = document as Document;
    const answers = await exchange();
    const check = (name: string, value: unknown) =>
      expect(faults({ components }, components.schemas[name]!, value), name).toEqual([]);
    check("CreateChatCompletionResponse", answers.chat);
    check("ListModelsResponse", answers.models);
    check("ErrorResponse", answers.error);
    for (const chunk of answers.chatChunks) check("CreateChatCompletionStreamResponse", chunk);
    check("CreateCompletionResponse", answers.completion);
    expect(
      faults({ components }, components.schemas.CreateChatCompletionResponse!, {
        ...(answers.chat as object),
        choices: [{}],
      }),
    ).not.toEqual([]);
  });

  test.skipIf(typeof document === "string")("has no request field that this server does not know", () => {
    const { components } = document as Document;
    const fields = (schema: Schema): string[] => {
      if (schema.$ref !== undefined) return fields(components.schemas[schema.$ref.split("/").pop()!]!);
      return [...Object.keys(schema.properties ?? {}), ...(schema.allOf ?? []).flatMap(fields)];
    };
    const unknown = (name: string, ...known: object[]) =>
      fields(components.schemas[name]!).filter((field) => !known.some((set) => field in set));
    expect(unknown("CreateChatCompletionRequest", chatRequestSchema.entries, chatFieldRules)).toEqual([]);
    expect(unknown("CreateCompletionRequest", completionRequestSchema.entries, completionFieldRules)).toEqual([]);
  });
});

describe("what the server says of itself", () => {
  test("openapi.json has every route, and every reference leads somewhere", async () => {
    const { server } = await serveSimulated({ apiKey: "k" });
    const document = (await (await fetch(`${server.url}/openapi.json`)).json()) as {
      openapi: string;
      paths: object;
      components: { schemas: object; securitySchemes?: object };
    };
    expect(document.openapi).toBe("3.1.0");
    expect(Object.keys(document.paths).sort()).toEqual([
      "/",
      "/health",
      "/metrics",
      "/openapi.json",
      "/v1/chat/completions",
      "/v1/completions",
      "/v1/models",
      "/v1/models/{id}",
      "/version",
    ]);
    for (const [, name] of JSON.stringify(document).matchAll(/#\/components\/schemas\/(\w+)/g))
      expect(document.components.schemas).toHaveProperty(name!);
    expect(document.components.schemas).toMatchObject({
      ChatRequest: {
        required: ["messages", "model"],
        additionalProperties: false,
        properties: {
          temperature: { type: "number", minimum: 0, maximum: 2, default: 1 },
          top_p: { type: "number", exclusiveMinimum: 0, maximum: 1 },
          n: { type: "integer", minimum: 1, maximum: 128 },
          stop: {
            anyOf: [
              { type: "string", minLength: 1 },
              { type: "array", minItems: 1, maxItems: 4 },
            ],
          },
        },
      },
    });
    expect(document.components.securitySchemes).toBeDefined();
  });

  test("the page at / needs nothing but this server", async () => {
    const { server } = await serveSimulated();
    const response = await fetch(server.url);
    const html = await response.text();
    expect(response.headers.get("content-type")).toContain("text/html");
    expect(html).toBe(apiPage());
    expect(html).not.toMatch(/https?:\/\//);
    expect(html).not.toMatch(/<(link|img|iframe)|src=/);
    const script = /<script>([^]*)<\/script>/.exec(html)![1]!;
    expect(() => new Script(script)).not.toThrow();
  });

  test("the version is the package's", async () => {
    const { server } = await serveSimulated();
    const own = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string };
    expect(version).toBe(own.version);
    expect(await (await fetch(`${server.url}/version`)).json()).toEqual({ version });
  });
});
