/** OpenAI's HTTP API over a model: start it, ask it with fetch (streaming) and with our client, stop it. */
import { createClient, createEngine, createServer } from "@llm/serve";
import { question, trainColours } from "./shared/colours.js";

const model = await trainColours();
const engine = await createEngine(model);
const server = await createServer({ engine, modelName: "colours", port: 0 }); // 0 = any free port; the default is 23333
console.log(`/v1/models: ${JSON.stringify(await (await fetch(`${server.url}/v1/models`)).json())}`);

const response = await fetch(`${server.url}/v1/chat/completions`, {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({
    model: "colours",
    messages: [{ role: "user", content: question("coal") }],
    temperature: 0,
    stream: true,
  }),
});
const lines = (await response.text()).split("\n").filter((line) => line.startsWith("data: "));
console.log(`${lines.length} events, the last is ${lines.at(-1)}`);

const client = createClient({ baseUrl: server.url });
for await (const event of client.chat([{ role: "user", content: question("blood") }], { temperature: 0 })) {
  if (event.type === "text-delta") process.stdout.write(event.text);
  else console.log(`  (${event.usage.completionTokens} tokens)`);
}

const refused = await fetch(`${server.url}/v1/chat/completions`, {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ model: "colours", messages: [], temprature: 0 }),
});
console.log(`a misspelt field: ${refused.status} ${await refused.text()}`);

await server.close();
await engine.dispose();
model.dispose();
