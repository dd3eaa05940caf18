/**
 * `fetch`, whose `init.signal` ends the request until the last byte of the answer has been read. Node's own `fetch` leaves a
 * reader waiting for ever when the abort comes after the last byte has arrived and before it has been read.
 * @throws the signal's reason when aborted, also from reading the body (after one more part of it at most); else as `fetch`
 * @see https://github.com/nodejs/undici/issues/4089
 */
export async function abortableFetch(url: string | URL, init: RequestInit = {}): Promise<Response> {
  const response = await fetch(url, init);
  const { signal } = init;
  if (!signal || response.body === null) return response;
  return new Response(response.body.pipeThrough(new TransformStream<Uint8Array, Uint8Array>(), { signal }), response);
}
