// Text that a model is still writing. Deltas may be dropped; the finished event replaces what was gathered here.

import type { Delta, RunState, TaskEvent } from './frames.js';
import { hasEnded } from './run.js';

/** Keys of finished texts are remembered only so far back: a delta does not come later than that. */
const MAX_CLOSED = 1_000;

interface Draft {
  run: string;
  text: string;
  /** As the protocol counts: code points, not halves of them. */
  length: number;
  /** The task was subscribed anew: what there is so far comes again from its start. */
  stale: boolean;
}

function codePoints(text: string): number {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

export class Drafts {
  readonly #open = new Map<string, Draft>();
  readonly #closed = new Set<string>();

  /** The whole text after a delta, or null if it does not fit on to what is here and so is ignored. */
  apply({ run, key, offset, text }: Delta): string | null {
    if (this.#closed.has(key)) return null;
    let held = this.#open.get(key);
    if (held?.stale && offset === 0) held = undefined;
    const length = held?.length ?? 0;
    if (length !== offset) return null;
    const whole = (held?.text ?? '') + text;
    this.#open.set(key, { run, text: whole, length: length + codePoints(text), stale: false });
    return whole;
  }

  /** An event: one that finishes a text replaces it, and a run that is over writes no more. True if something went. */
  settle({ kind, run, data }: TaskEvent): boolean {
    let gone = false;
    if (typeof data.key === 'string') {
      this.#closed.add(data.key);
      if (this.#closed.size > MAX_CLOSED) this.#closed.delete(this.#closed.values().next().value!);
      gone = this.#open.delete(data.key);
    }
    if (kind === 'status' && hasEnded(data.state as RunState)) {
      for (const [key, draft] of this.#open) if (draft.run === run) gone = this.#open.delete(key);
    }
    return gone;
  }

  restart(): void {
    for (const draft of this.#open.values()) draft.stale = true;
  }

  clear(): void {
    this.#open.clear();
  }

  entries(): [string, string][] {
    return [...this.#open].map(([key, { text }]) => [key, text]);
  }
}
