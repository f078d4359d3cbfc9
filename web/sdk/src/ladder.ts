// Which way to the server: the best that passes. Pure: no clock, no timer and no socket.
//
// Down: a WebSocket that ends before the server's word counts as one failure, and one that says nothing until the
// deadline as two, for a proxy that swallows is slower to find out than one that refuses. At three, the server is asked
// something over plain HTTP; if it answers, the next way down is taken. A stream that cannot be had counts two of two.
//
// Up: while a lesser way is gone the best one is tried beside it after 1, 2, 4 and then every 5 minutes, a fifth more or
// less, and when the page wakes up or the network comes back. The lesser one is let go only once the better one has
// brought the server's word. Retry, and waking up without a connection, begin at the top, where one failure is enough
// for a page that has been down before.

export type Transport = 'websocket' | 'sse' | 'pages';

export const TRANSPORTS: readonly Transport[] = ['websocket', 'sse', 'pages'];

const FAILURES: Record<Transport, number> = { websocket: 3, sse: 2, pages: Infinity };

const UP_MS = [60_000, 120_000, 240_000, 300_000];

/** Waking up tries the best way at most this often. */
export const UP_PAUSE_MS = 30_000;

export class Ladder {
  readonly #rungs: readonly Transport[];
  #at = 0;
  #failures = 0;
  #fallen = false;
  #looks = 0;

  constructor(rungs: readonly Transport[]) {
    this.#rungs = rungs;
  }

  get current(): Transport | undefined {
    return this.#rungs[this.#at];
  }

  get isBest(): boolean {
    return this.#at === 0;
  }

  get best(): Transport | undefined {
    return this.#rungs[0];
  }

  /** A try ended before the server's word. True if there is a way down, and it is time to see whether it is open. */
  failed(weight: number): boolean {
    if (this.#at + 1 >= this.#rungs.length) return false;
    this.#failures += weight;
    return this.#failures >= FAILURES[this.current!];
  }

  down(): void {
    this.#at += 1;
    this.#failures = 0;
    this.#fallen = true;
  }

  below(way: Transport): Transport | undefined {
    return this.#rungs[this.#rungs.indexOf(way) + 1];
  }

  /** A better way has proved itself. */
  take(way: Transport): void {
    this.#at = this.#rungs.indexOf(way);
  }

  top(): void {
    this.#at = 0;
    this.#failures = this.#fallen ? FAILURES[this.current ?? 'pages'] - 1 : 0;
  }

  /** The server's word came this way. */
  confirmed(): void {
    this.#failures = 0;
    if (this.#at === 0) this.#looks = 0;
  }

  /** Milliseconds until the best way is tried beside this one. `random` is in [0, 1). */
  nextLook(random: number): number {
    const ms = UP_MS[Math.min(this.#looks, UP_MS.length - 1)]!;
    this.#looks += 1;
    return ms * (0.8 + 0.4 * random);
  }
}
