/** Events from the engine to one reader: the writer never waits, the reader takes what is there. */
export class EventQueue<T> {
  private readonly items: T[] = [];
  private sources: number;
  private error: Error | undefined;
  private wake: (() => void) | undefined;

  /** @param sources how many writers must close before the iteration ends */
  constructor(sources = 1) {
    this.sources = sources;
  }

  push(item: T): void {
    this.items.push(item);
    this.wake?.();
  }

  /** One writer is done. */
  closeOne(): void {
    this.sources--;
    this.wake?.();
  }

  /** Ends the iteration with an error, after the events before it. */
  fail(error: Error): void {
    this.error ??= error;
    this.wake?.();
  }

  /** @param onEnd called when the reader stops early */
  async *iterate(onEnd: () => void): AsyncGenerator<T> {
    try {
      for (;;) {
        while (this.items.length > 0) yield this.items.shift()!;
        if (this.error) throw this.error;
        if (this.sources <= 0) return;
        await new Promise<void>((resolve) => (this.wake = resolve));
        this.wake = undefined;
      }
    } finally {
      onEnd();
    }
  }
}
