/**
 * Payloads of a stream of server-sent events: the `data` of each event, whatever the chunk borders, line ends and comments.
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */
export async function* readServerSentEvents(body: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let buffer = "";
  let data: string[] = [];
  for await (const bytes of body) {
    buffer += decoder.decode(bytes, { stream: true });
    let start = 0;
    // A lone \r at the end may be half of \r\n: it waits for the next chunk.
    for (let match = nextLineEnd(buffer, start); match !== undefined; match = nextLineEnd(buffer, start)) {
      const line = buffer.slice(start, match.index);
      start = match.next;
      if (line === "") {
        if (data.length > 0) yield data.join("\n");
        data = [];
      } else if (line.startsWith("data:")) data.push(line.slice(line.charCodeAt(5) === 32 ? 6 : 5));
    }
    buffer = buffer.slice(start);
  }
}

function nextLineEnd(text: string, from: number): { index: number; next: number } | undefined {
  for (let i = from; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === 10) return { index: i, next: i + 1 };
    if (c !== 13) continue;
    if (i + 1 === text.length) return undefined;
    return { index: i, next: text.charCodeAt(i + 1) === 10 ? i + 2 : i + 1 };
  }
  return undefined;
}
