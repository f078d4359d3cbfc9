// One watched task: its position in the log, and the rules of the protocol about it. It knows no socket and no timer;
// the connection feeds it frames and asks it for subscribe entries, the same way on the first connect and on every other.

import type {
  CaughtUp,
  Cursor,
  Delta,
  ErrorFrame,
  EventFrame,
  EventsFrame,
  Heartbeat,
  Reset,
  ResetReason,
  Run,
  Snapshot,
  SubscribeEntry,
  Subscribed,
  TaskEvent,
} from './frames.js';
import { NOTHING_HEARD, checkHeads, followers, type HeadsMemory } from './position.js';

export interface ResetNews {
  why: ResetReason | null;
  /** What this client had; the same log only if `gen` is the snapshot's. */
  had: Cursor;
  oldest: number;
}

export interface SubscriptionHandler {
  /** The server took the subscription up at our position; `runs` are those not ended. */
  resumed?(news: { gen: string; from: number; head: number; missed: number; runs: Run[] }): void;
  /** A gap, said aloud. Its snapshot follows. */
  reset?(news: ResetNews): void;
  /** The state at `seq`, which is now the position. `had` tells what can be kept. */
  snapshot?(snapshot: Snapshot, news: ResetNews): void;
  /** Events that follow the position without a gap, in order, each once. */
  events(items: TaskEvent[]): void;
  /** Text of a model as it is being written. It may be dropped and is no event. */
  delta?(delta: Delta): void;
  /** The head of the moment of subscribing has been passed. `recovered`: events missed while away, null if never away. */
  caughtUp?(news: { seq: number; recovered: number | null }): void;
  /** Nothing more will come. */
  ended?(why: 'not_found' | 'refused', error: ErrorFrame | null): void;
}

export type SubscriptionState = 'waiting' | 'replaying' | 'live' | 'ended';

/** What the connection has to do after a frame. */
export type Verdict = 'good' | 'again' | 'later';

type SubFrame = Subscribed | Reset | Snapshot | EventFrame | EventsFrame | CaughtUp | Delta;

export class Subscription {
  readonly task: string;
  state: SubscriptionState = 'waiting';
  /** The number of the subscribe that counts; frames of any other are discarded. 0 before the first. */
  sub = 0;
  /** Set before any handler is called, so that a handler that fails cannot make an event come twice. */
  position: Cursor;

  private readonly handler: SubscriptionHandler;
  /** Between `reset` and `snapshot`, when the position means nothing. */
  private resetting: ResetNews | null = null;
  private memory: HeadsMemory = NOTHING_HEARD;
  private answered = false;
  private unanswered = 0;
  /** True once a subscribe was answered: the next answer is that of a reconnect. */
  private wasLive = false;
  private recovered: number | null = null;

  constructor(task: string, handler: SubscriptionHandler, position: Cursor = { gen: null, seq: 0 }) {
    this.task = task;
    this.handler = handler;
    this.position = position;
  }

  /** Starts over under a new number, from the position. */
  entry(sub: number): SubscribeEntry {
    this.sub = sub;
    this.state = 'waiting';
    this.resetting = null;
    this.memory = NOTHING_HEARD;
    this.answered = false;
    this.unanswered = 0;
    const { gen, seq } = this.position;
    return gen === null ? { sub, task: this.task, after: seq } : { sub, task: this.task, gen, after: seq };
  }

  accept(frame: SubFrame): Verdict {
    if (frame.sub !== this.sub || this.state === 'ended') return 'good';
    switch (frame.type) {
      case 'subscribed':
        return this.subscribed(frame);
      case 'reset':
        return this.reset(frame);
      case 'snapshot':
        return this.snapshot(frame);
      case 'event':
        return this.events([frame.event]);
      case 'events':
        return this.events(frame.items);
      case 'caught_up':
        return this.caughtUp(frame);
      case 'delta':
        if (this.resetting === null) this.handler.delta?.(frame);
        return 'good';
    }
  }

  /** An `error` that names this subscription. */
  fail(frame: ErrorFrame): Verdict {
    if (frame.sub !== this.sub || this.state === 'ended') return 'good';
    if (frame.retryable === true) return 'later';
    this.state = 'ended';
    this.handler.ended?.(frame.code === 'not_found' ? 'not_found' : 'refused', frame);
    return 'good';
  }

  heartbeat(frame: Heartbeat): Verdict {
    if (this.state === 'ended' || this.sub === 0) return 'good';
    if (!this.answered) {
      // Every subscribe gets exactly one outcome; one that is lost must not be waited for for ever.
      this.unanswered += 1;
      return this.unanswered >= 2 ? 'again' : 'good';
    }
    if (this.resetting !== null) return 'good';
    const checked = checkHeads(this.position.seq, frame.heads?.[String(this.sub)], this.memory);
    this.memory = checked.memory;
    return checked.good ? 'good' : 'again';
  }

  private subscribed(frame: Subscribed): Verdict {
    const again = this.wasLive;
    this.answered = true;
    this.memory = NOTHING_HEARD;
    if (frame.outcome === 'not_found') {
      this.state = 'ended';
      this.handler.ended?.('not_found', null);
      return 'good';
    }
    this.wasLive = true;
    this.state = 'replaying';
    if (frame.outcome !== 'resumed') {
      this.recovered = null;
      this.resetting = { why: null, had: { ...this.position }, oldest: 1 };
      return 'good';
    }
    const from = frame.from ?? this.position.seq + 1;
    const gen = frame.gen ?? this.position.gen ?? '';
    const fresh = this.position.seq === 0;
    if (!fresh && (from !== this.position.seq + 1 || gen !== this.position.gen)) {
      // Resumed somewhere else than asked: what lies between would be lost without a word. Start this log over.
      this.position = { gen: null, seq: 0 };
      return 'again';
    }
    this.position = { gen, seq: from - 1 };
    const missed = frame.missed ?? 0;
    this.recovered = again ? missed : null;
    this.handler.resumed?.({ gen, from, head: frame.head ?? from - 1, missed, runs: frame.runs ?? [] });
    return 'good';
  }

  private reset(frame: Reset): Verdict {
    const had = this.resetting?.had ?? { ...this.position };
    this.resetting = { why: frame.why, had, oldest: frame.oldest };
    this.recovered = null;
    this.state = 'replaying';
    this.handler.reset?.(this.resetting);
    return 'good';
  }

  private snapshot(frame: Snapshot): Verdict {
    const news = this.resetting ?? { why: null, had: { ...this.position }, oldest: 1 };
    this.resetting = null;
    this.memory = NOTHING_HEARD;
    this.position = { gen: frame.gen, seq: frame.seq };
    this.handler.snapshot?.(frame, news);
    return 'good';
  }

  private events(items: TaskEvent[]): Verdict {
    if (this.resetting !== null || !this.answered) return 'again';
    const good = followers(this.position.seq, items);
    const last = items[good - 1];
    if (last !== undefined) {
      this.position = { gen: this.position.gen, seq: last.seq };
      this.handler.events(good === items.length ? items : items.slice(0, good));
    }
    return good === items.length ? 'good' : 'again';
  }

  private caughtUp(frame: CaughtUp): Verdict {
    if (this.resetting !== null || !this.answered) return 'good';
    this.state = 'live';
    const recovered = this.recovered;
    this.recovered = null;
    this.handler.caughtUp?.({ seq: frame.seq, recovered });
    return 'good';
  }
}
