/**
 * Stop strings over streamed text: emits what can no longer be the beginning of a stop string, and cuts before the first one that is
 * complete.
 */
export class StopMatcher {
  private readonly stops: readonly string[];
  private held = "";
  private match: string | undefined;

  constructor(stops: readonly string[]) {
    this.stops = stops.filter((s) => s.length > 0);
  }

  /** True once a stop string was seen; nothing is emitted after it. */
  get stopped(): boolean {
    return this.match !== undefined;
  }

  /** The stop string that ended the text. */
  get matched(): string | undefined {
    return this.match;
  }

  /** Takes more text; returns what is safe to show. */
  push(text: string): string {
    if (this.stopped) return "";
    this.held += text;
    let first = -1;
    for (const stop of this.stops) {
      const at = this.held.indexOf(stop);
      if (at >= 0 && (first < 0 || at < first || (at === first && stop.length > this.match!.length))) {
        first = at;
        this.match = stop;
      }
    }
    if (first >= 0) {
      const out = this.held.slice(0, first);
      this.held = "";
      return out;
    }
    // The longest tail that a stop string could begin with stays back.
    let keep = 0;
    for (const stop of this.stops) {
      for (let n = Math.min(stop.length - 1, this.held.length); n > keep; n--) {
        if (this.held.endsWith(stop.slice(0, n))) {
          keep = n;
          break;
        }
      }
    }
    const out = this.held.slice(0, this.held.length - keep);
    this.held = this.held.slice(this.held.length - keep);
    return out;
  }

  /** The text held back, when no stop string can follow any more. */
  end(): string {
    const out = this.stopped ? "" : this.held;
    this.held = "";
    return out;
  }
}
