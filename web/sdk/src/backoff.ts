// When to try again. A pure schedule: it knows no clock, no timer and no socket.

/** The first try comes at once, spread over a second so that a thousand pages do not arrive together. */
const FIRST_MS = 1_000;

/** After this many tries in a row the client says that it failed, and only probes. */
export const MAX_ATTEMPTS = 10;

/** The last ceiling; without jitter for answers that will most likely come again unchanged. */
export const LONGEST_MS = 30_000;

/** A failed client looks whether the server is back about once a minute. */
const PROBE_MS = 60_000;

/**
 * Milliseconds to wait before a try, counted from 1 since the last confirmed connection, or null when there are no
 * more. Full jitter: anything from nothing to the ceiling. `random` is in [0, 1).
 */
export function delayBefore(attempt: number, random: number): number | null {
  if (attempt > MAX_ATTEMPTS) return null;
  if (attempt <= 1) return random * FIRST_MS;
  // Doubled each time, so that a server that is down is not hammered: 1, 2, 4, 8, 16, 30 s.
  return random * Math.min(1_000 * 2 ** (attempt - 2), LONGEST_MS);
}

/** Milliseconds until the next look of a failed client: 60 s, up to a fifth more or less. */
export function probeDelay(random: number): number {
  return PROBE_MS * (0.8 + 0.4 * random);
}
