// How well the line works, from what travels over it anyway. Pure.

export type Quality = 'good' | 'slow' | 'silent' | 'none';

/** A second there and back is felt as waiting. */
const SLOW_MS = 1_000;

/** A heartbeat that is late by a quarter is overdue. */
export const SILENT_PER_HEARTBEAT = 1.25;

export function qualityOf(roundTripMs: number | null, silentMs: number, heartbeatMs: number): Quality {
  if (silentMs >= heartbeatMs * SILENT_PER_HEARTBEAT) return 'silent';
  return roundTripMs !== null && roundTripMs >= SLOW_MS ? 'slow' : 'good';
}

/**
 * The time there and back. A question with its answer measures it; a heartbeat tells only how much later it came than
 * the fastest one, by two clocks that need not agree, and that much is added.
 */
export class RoundTrip {
  #measured: number | null = null;
  #fastest = Infinity;
  #askedAt: number | null = null;

  ask(now: number): void {
    this.#askedAt ??= now;
  }

  /** Something came. What was asked is answered by it. */
  answer(now: number): number | null {
    if (this.#askedAt !== null) this.#measured = now - this.#askedAt;
    this.#askedAt = null;
    return this.#measured;
  }

  heartbeat(at: string, now: number): number | null {
    const way = now - Date.parse(at);
    if (this.#measured === null || Number.isNaN(way)) return this.#measured;
    this.#fastest = Math.min(this.#fastest, way);
    return this.#measured + way - this.#fastest;
  }
}
