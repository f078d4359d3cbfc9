// Text that a model is still writing. Deltas may be dropped; the finished event replaces what was gathered here.

import type { Delta } from './frames.js';

export class Drafts {
  private readonly texts = new Map<string, string>();
  private readonly closed = new Set<string>();

  /** True if the text changed. Offsets count Unicode scalars; a delta that does not fit on is ignored. */
  apply(delta: Delta): boolean {
    if (this.closed.has(delta.key)) return false;
    const text = this.texts.get(delta.key) ?? '';
    if (delta.offset === 0 && text !== '') {
      // At a subscribe the text so far comes again from its start.
      if (scalars(delta.text) < scalars(text)) return false;
      this.texts.set(delta.key, delta.text);
      return true;
    }
    if (scalars(text) !== delta.offset) return false;
    this.texts.set(delta.key, text + delta.text);
    return true;
  }

  /** The finished event is here; nothing of that key counts any more. */
  close(key: string): boolean {
    this.closed.add(key);
    return this.texts.delete(key);
  }

  clear(): void {
    this.texts.clear();
  }

  entries(): [string, string][] {
    return [...this.texts];
  }
}

function scalars(text: string): number {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}
