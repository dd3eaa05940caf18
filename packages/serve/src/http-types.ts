/** A request as the API sees it, whatever carried it (node:http or fetch). */
export interface ApiRequest {
  method: string;
  /** Path without query. */
  path: string;
  /** Value of a header; name in lower case. */
  header(name: string): string | undefined;
  /** @throws {ApiError} 413 beyond `limit` bytes */
  readBody(limit: number): Promise<Uint8Array>;
  /** Aborted when the client goes away. */
  signal: AbortSignal;
}

/** An answer: a text, or server-sent events that are pulled as fast as the client reads. */
export interface ApiResponse {
  status: number;
  headers: Record<string, string>;
  body: string | AsyncIterableIterator<string>;
}
