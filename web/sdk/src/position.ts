// The rules by which a client knows that it missed nothing. Pure: no socket, no timer.

import type { HeadMark, TaskEvent } from './frames.js';

/** How many events at the front of `items` follow `position` without a gap. All of them, if the server is right. */
export function followers(position: number, items: readonly TaskEvent[]): number {
  let count = 0;
  while (count < items.length && items[count]?.seq === position + 1 + count) count += 1;
  return count;
}

/** What the heartbeats have said of one subscription so far. */
export interface HeadsMemory {
  /** Heartbeats in a row that did not name it. */
  absent: number;
  /** `sent` of the last heartbeat at which it was behind its head, else null. */
  stuckAt: number | null;
}

export const NOTHING_HEARD: HeadsMemory = { absent: 0, stuckAt: null };

/**
 * Compares a heartbeat with the position. `good: false` means that the subscription cannot be trusted any more:
 * the server believes to have sent something else, has forgotten it (twice), or does not move it on (twice).
 */
export function checkHeads(
  position: number,
  mark: HeadMark | undefined,
  memory: HeadsMemory,
): { good: boolean; memory: HeadsMemory } {
  if (mark === undefined) {
    const absent = memory.absent + 1;
    return { good: absent < 2, memory: { absent, stuckAt: memory.stuckAt } };
  }
  if (mark.sent !== position) return { good: false, memory: NOTHING_HEARD };
  if (mark.sent < mark.head) {
    const good = memory.stuckAt !== mark.sent;
    return { good, memory: { absent: 0, stuckAt: mark.sent } };
  }
  return { good: true, memory: NOTHING_HEARD };
}
