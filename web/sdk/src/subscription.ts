// One watcher of one task: its own position in the log, and what it is told. It knows no socket and no other watcher;
// the channel of its task feeds it.

import { Drafts } from './draft.js';
import type { Cursor, Delta, ErrorFrame, ResetReason, Run, Snapshot, TaskEvent } from './frames.js';

export interface ResetNews {
  why: ResetReason | null;
  /** What this client had; the same log only if `gen` is the snapshot's. */
  had: Cursor;
  oldest: number;
}

export interface ResumedNews {
  gen: string;
  from: number;
  head: number;
  missed: number;
  runs: Run[];
}

export interface SubscriptionHandler {
  /** The server took the subscription up at our position; `runs` are those not ended. */
  resumed?(news: ResumedNews): void;
  /** A gap, said aloud. Its snapshot follows. */
  reset?(news: ResetNews): void;
  /** The state at `seq`, which is now the position. `had` tells what can be kept. */
  snapshot?(snapshot: Snapshot, news: ResetNews): void;
  /** Events that follow the position without a gap, in order, each once. */
  events(items: TaskEvent[]): void;
  /** Text of a model as it is being written, and all of it so far. It may be dropped and is no event. */
  delta?(delta: Delta, text: string): void;
  /** The head of the moment of subscribing has been passed. `recovered`: events missed while away, null if never away. */
  caughtUp?(news: { seq: number; recovered: number | null }): void;
  /** Nothing more will come. */
  ended?(why: 'not_found' | 'refused', error: ErrorFrame | null): void;
}

export type SubscriptionState = 'waiting' | 'replaying' | 'live' | 'ended';

export class Subscription {
  readonly task: string;
  state: SubscriptionState = 'waiting';
  /** Set before any handler is called, so that a handler that fails cannot make an event come twice. */
  position: Cursor;
  readonly drafts = new Drafts();
  /** It must be asked for by itself: what others have is no answer for it. */
  alone = false;

  readonly #handler: SubscriptionHandler;
  /** True once a subscribe was answered: the next answer is that of a reconnect. */
  #wasLive = false;
  #recovered: number | null = null;
  #news: ResetNews | null = null;

  constructor(task: string, handler: SubscriptionHandler, position: Cursor = { gen: null, seq: 0 }) {
    this.task = task;
    this.#handler = handler;
    this.position = position;
  }

  /** `from` is that of the channel; a watcher that has more already is told its own. */
  resumed({ gen, from, head, runs }: ResumedNews): void {
    const { seq } = this.position;
    const own = seq > 0 ? Math.max(from, seq + 1) : from;
    const missed = head - own + 1;
    this.position = { gen, seq: own - 1 };
    this.#recovered = this.#wasLive ? missed : null;
    this.#wasLive = true;
    this.state = 'replaying';
    this.drafts.restart();
    this.#handler.resumed?.({ gen, from: own, head, missed, runs });
  }

  reset(why: ResetReason | null, oldest: number): void {
    this.#news = { why, had: this.#news?.had ?? { ...this.position }, oldest };
    this.#recovered = null;
    this.#wasLive = true;
    this.state = 'replaying';
    this.drafts.clear();
    this.#handler.reset?.(this.#news);
  }

  snapshot(frame: Snapshot): void {
    const news = this.#news ?? { why: null, had: { ...this.position }, oldest: 1 };
    this.#news = null;
    this.state = 'replaying';
    this.position = { gen: frame.gen, seq: frame.seq };
    this.#handler.snapshot?.(frame, news);
  }

  /** Those of `items` that are new here; the channel has made sure that they follow each other. */
  events(items: TaskEvent[]): void {
    const fresh = items.slice(Math.max(0, this.position.seq + 1 - items[0]!.seq));
    const last = fresh[fresh.length - 1];
    if (last === undefined) return;
    this.position = { gen: this.position.gen, seq: last.seq };
    for (const event of fresh) this.drafts.settle(event);
    this.#handler.events(fresh);
  }

  delta(frame: Delta): void {
    const text = this.drafts.apply(frame);
    if (text !== null) this.#handler.delta?.(frame, text);
  }

  caughtUp(seq: number): void {
    if (this.state !== 'replaying') return;
    const recovered = this.#recovered;
    this.#recovered = null;
    this.state = 'live';
    this.#handler.caughtUp?.({ seq, recovered });
  }

  end(why: 'not_found' | 'refused', error: ErrorFrame | null): void {
    this.state = 'ended';
    this.drafts.clear();
    this.#handler.ended?.(why, error);
  }
}
