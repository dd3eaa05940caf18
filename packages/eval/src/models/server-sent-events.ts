/**
 * The `data` of each event of a text/event-stream body, in order. Bytes may be cut anywhere: inside a line, a line end or a
 * character. Comments and other fields are skipped; several data lines of one event are joined by line feeds.
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */
export async function* serverSentEvents(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let pending = "";
  let data: string[] = [];
  const take = function* (final: boolean): Generator<string> {
    for (;;) {
      const end = pending.search(/\r\n|\n|\r/);
      // A lone carriage return at the end of what has arrived may be half of a CRLF.
      if (end < 0 || (!final && pending[end] === "\r" && end === pending.length - 1)) return;
      const line = pending.slice(0, end);
      pending = pending.slice(end + (pending.startsWith("\r\n", end) ? 2 : 1));
      if (line === "") {
        if (data.length > 0) yield data.join("\n");
        data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  };
  for await (const chunk of body) {
    pending += decoder.decode(chunk, { stream: true });
    yield* take(false);
  }
  pending += `${decoder.decode()}\n\n`;
  yield* take(true);
}
