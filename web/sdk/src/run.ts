// Whether a run is over.

import type { RunState } from './frames.js';

const ENDED: readonly RunState[] = ['succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted'];

export function hasEnded(state: RunState): boolean {
  return ENDED.includes(state);
}
