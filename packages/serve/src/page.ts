/**
 * The page at GET /: every route with its schemas, and a form that calls the API and shows the stream. One file, no network but
 * this server; its content comes from /openapi.json, so it cannot disagree with it.
 */
export function apiPage(): string {
  return page;
}

const style = `
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --soft: color-mix(in srgb, currentColor 6%, transparent); --accent: #2f6fde; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.15rem; }
p { margin: .3rem 0; } small, .muted { opacity: .7; }
code, pre, textarea, .mono { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { margin: .5rem 0; padding: .7rem .8rem; background: var(--soft); border-radius: 6px; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; } summary { padding: .45rem .8rem; cursor: pointer; } details > div { padding: 0 .8rem .7rem; }
.method { display: inline-block; width: 3.4rem; font-weight: 700; color: var(--accent); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } td, th { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-top: 1px solid var(--line); }
form { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; display: grid; gap: .7rem; }
label { display: grid; gap: .2rem; font-size: .85rem; } .row { display: flex; flex-wrap: wrap; gap: .7rem; align-items: end; }
input, select, textarea, button { font-size: .95rem; padding: .4rem .5rem; border: 1px solid var(--line); border-radius: 6px; background: transparent; color: inherit; }
textarea { width: 100%; min-height: 9rem; resize: vertical; } button { background: var(--accent); color: #fff; border: 0; padding: .5rem 1rem; cursor: pointer; } button.second { background: var(--soft); color: inherit; }
#answer { min-height: 4rem; } .error { color: #c0392b; }
`;

const script = `
const $ = (id) => document.getElementById(id);
const element = (tag, text, className) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (className) e.className = className; return e; };
let api, controller;
const resolve = (schema) => schema && schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
function typeText(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" | ");
  if (schema.anyOf) return schema.anyOf.map(typeText).join(" | ");
  if (schema.type === "array") return typeText(schema.items || {}) + "[]";
  let text = schema.type || "any";
  const low = schema.minimum ?? schema.exclusiveMinimum, high = schema.maximum ?? schema.exclusiveMaximum;
  if (low !== undefined || high !== undefined) text += " " + (schema.exclusiveMinimum !== undefined ? "(" : "[") + (low ?? "…") + ", " + (high ?? "…") + (schema.exclusiveMaximum !== undefined ? ")" : "]");
  return text;
}
function schemaTable(schema) {
  const table = element("table"), required = new Set(schema.required || []);
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const row = table.insertRow();
    row.append(element("td", name + (required.has(name) ? " *" : ""), "mono"), element("td", typeText(field), "mono"));
    row.append(element("td", [field.description, field.default !== undefined ? "Default " + JSON.stringify(field.default) + "." : ""].filter(Boolean).join(" ")));
  }
  return table;
}
function showRoutes() {
  for (const [path, methods] of Object.entries(api.paths)) for (const [method, operation] of Object.entries(methods)) {
    const details = element("details"), summary = element("summary"), body = element("div");
    summary.append(element("span", method.toUpperCase(), "method"), element("code", path), element("span", "  " + operation.summary, "muted"));
    const request = operation.requestBody && operation.requestBody.content["application/json"].schema;
    if (request) body.append(element("p", "Body (* required)"), schemaTable(resolve(request)));
    for (const [status, response] of Object.entries(operation.responses)) {
      const schema = response.content && (response.content["application/json"] || {}).schema;
      body.append(element("p", status + "  " + response.description + (schema && schema.$ref ? "  → " + typeText(schema) : "")));
    }
    details.append(summary, body); $("routes").append(details);
  }
  for (const [name, schema] of Object.entries(api.components.schemas)) {
    const details = element("details"), body = element("div");
    body.append(schemaTable(schema), element("pre", JSON.stringify(schema, null, 2)));
    details.append(element("summary", name), body); $("schemas").append(details);
  }
}
const examples = {
  "/v1/chat/completions": (model) => ({ model, messages: [{ role: "user", content: "Hello!" }], max_tokens: 128, temperature: 0.7, stream: true }),
  "/v1/completions": (model) => ({ model, prompt: "Once upon a time", max_tokens: 128, temperature: 0.7, stream: true }),
};
function headers() { const key = $("key").value; return { "content-type": "application/json", ...(key ? { authorization: "Bearer " + key } : {}) }; }
async function loadModels() {
  const response = await fetch("/v1/models", { headers: headers() });
  const body = await response.json();
  $("model").replaceChildren(...(body.data || []).map(({ id }) => element("option", id)));
  fill();
}
function fill() { $("body").value = JSON.stringify(examples[$("route").value]($("model").value || "default"), null, 2); }
function show(text, error) { $("answer").append(error ? element("span", text, "error") : document.createTextNode(text)); }
async function send() {
  controller = new AbortController(); $("answer").textContent = ""; $("status").textContent = "…";
  const start = performance.now(); let events = 0;
  try {
    const response = await fetch($("route").value, { method: "POST", headers: headers(), body: $("body").value, signal: controller.signal });
    $("status").textContent = response.status + " " + response.statusText;
    if (!(response.headers.get("content-type") || "").startsWith("text/event-stream")) return show(JSON.stringify(await response.json(), null, 2), !response.ok);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); let buffer = "";
    for (;;) {
      const { done, value } = await reader.read(); if (done) break;
      buffer += value; const lines = buffer.split("\\n"); buffer = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const chunk = JSON.parse(line.slice(6)); events++;
        if (chunk.error) show("\\n" + chunk.error.message, true);
        for (const choice of chunk.choices || []) if (choice.index === 0) show(choice.delta ? choice.delta.content || "" : choice.text || "");
      }
    }
  } catch (error) { show(String(error), true); }
  finally { $("status").textContent += "  " + Math.round(performance.now() - start) + " ms" + (events ? ", " + events + " events" : ""); }
}
$("route").onchange = fill; $("model").onchange = fill; $("key").onchange = loadModels;
$("form").onsubmit = (event) => { event.preventDefault(); send(); };
$("stop").onclick = () => controller && controller.abort();
(async () => {
  api = await (await fetch("/openapi.json")).json();
  $("version").textContent = api.info.version;
  showRoutes(); await loadModels();
})().catch((error) => show(String(error), true));
`;

const page = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@llm/serve</title>
<style>${style}</style>
</head>
<body>
<h1>@llm/serve <small id="version"></small></h1>
<p class="muted">A language model over OpenAI's API. Point any OpenAI client at <code>/v1</code> of this address.</p>
<h2>Try it</h2>
<form id="form">
<div class="row">
<label>Route <select id="route"><option>/v1/chat/completions</option><option>/v1/completions</option></select></label>
<label>Model <select id="model"></select></label>
<label>API key <input id="key" type="password" autocomplete="off" placeholder="if the server needs one"></label>
</div>
<label>Body <textarea id="body" spellcheck="false"></textarea></label>
<div class="row"><button>Send</button><button type="button" class="second" id="stop">Stop</button><span id="status" class="muted mono"></span></div>
<pre id="answer"></pre>
</form>
<h2>Routes</h2>
<div id="routes"></div>
<h2>Schemas</h2>
<div id="schemas"></div>
<script>${script}</script>
</body>
</html>
`;
