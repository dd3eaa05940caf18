/**
 * `fetch`, whose `init.signal` ends the request until the last byte of the answer has been read. Node's own `fetch` leaves a
 * reader waiting for ever when the abort comes after the last byte has arrived and before it has been read.
 * @throws the signal's reason when aborted, also from reading the body; else as `fetch`
 * @see https://github.com/nodejs/undici/issues/4089
 */
export async function abortableFetch(url: string | URL, init: RequestInit = {}): Promise<Response> {
  const { signal } = init;
  if (signal === undefined || signal === null) return fetch(url, init);
  const answer = fetch(url, init);
  const response = await new Promise<Response>((resolve, reject) => {
    const stop = (): void => {
      reject(signal.reason);
      answer.then(({ body }) => body?.cancel()).catch(() => undefined);
    };
    signal.addEventListener("abort", stop, { once: true });
    answer.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
  return response.body === null ? response : new Response(untilAborted(response.body, signal), response);
}

/** The same bytes; an abort cancels their source and fails whoever reads. */
function untilAborted(source: ReadableStream<Uint8Array>, signal: AbortSignal): ReadableStream<Uint8Array> {
  const reader = source.getReader();
  let stop: () => void;
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        stop = () => {
          controller.error(signal.reason);
          reader.cancel(signal.reason).catch(() => undefined);
        };
        if (signal.aborted) stop();
        else signal.addEventListener("abort", stop, { once: true });
      },
      async pull(controller) {
        try {
          const { done, value } = await reader.read();
          if (signal.aborted) return; // `stop` has said so
          if (!done) return controller.enqueue(value);
          controller.close();
        } catch (error) {
          if (signal.aborted) return;
          controller.error(error);
        }
        signal.removeEventListener("abort", stop);
      },
      async cancel(reason) {
        signal.removeEventListener("abort", stop);
        await reader.cancel(reason);
      },
    },
    { highWaterMark: 0 },
  );
}
