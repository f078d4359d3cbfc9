// One task on one connection: its place in the log, and the rules of the protocol about it. The server keeps one
// subscription per task and connection, so all who watch the task here share it; each keeps a position of its own. It
// knows no socket and no timer; the connection feeds it frames and asks it for subscribe entries, the same way on the
// first connect and on every other.

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
  Snapshot,
  SubscribeEntry,
  Subscribed,
  TaskEvent,
} from './frames.js';
import { NOTHING_HEARD, checkHeads, followers, type HeadsMemory } from './position.js';
import type { Subscription } from './subscription.js';

/** What the connection has to do after a frame: nothing, subscribe again, or do so later, as the server asked. */
export type Verdict = 'good' | 'again' | 'later';

export type SubFrame = Subscribed | Reset | Snapshot | EventFrame | EventsFrame | CaughtUp | Delta;

export class Channel {
  readonly task: string;
  readonly watchers = new Set<Subscription>();
  /** The number of the subscribe that counts; frames of any other are discarded. 0 before the first, -1 while none. */
  sub = 0;
  /** The outcome of the subscribe is here. */
  answered = false;
  /** How often in a row it had to be subscribed again, without an event in order or a right heartbeat in between. */
  doubts = 0;
  /** An event came in order, or a heartbeat was right. */
  proven = false;
  /** The log's end, as the last heartbeat had it. */
  head = 0;

  /** Of what comes over the wire; no watcher that was served is behind it. */
  #position: Cursor = { gen: null, seq: 0 };
  /** Between `reset` and `snapshot`, when the position means nothing. */
  #resetting = false;
  #why: ResetReason | null = null;
  #oldest = 1;
  #memory: HeadsMemory = NOTHING_HEARD;
  #unanswered = 0;
  /** Those for whom the present subscribe was made; empty when it is for all. */
  #joining = new Set<Subscription>();
  /** It ended because there was no such task. */
  #gone = false;
  /** The log under which it was there again; once per log, so that no answer can make a loop. */
  #reopenedFor: string | null = null;

  constructor(task: string) {
    this.task = task;
  }

  get ended(): boolean {
    return ![...this.watchers].some(({ state }) => state !== 'ended');
  }

  /** Served, and not between a reset and its snapshot. */
  get open(): boolean {
    return this.answered && !this.#resetting && !this.ended;
  }

  /** Somebody came while an earlier subscribe was under way. */
  get hasNext(): boolean {
    return this.open && [...this.watchers].some(({ state }) => state === 'waiting');
  }

  /** Starts over under a new number, from where those have to go on who are furthest behind. */
  entry(sub: number): SubscribeEntry {
    this.sub = sub;
    this.answered = false;
    this.#resetting = false;
    this.#memory = NOTHING_HEARD;
    this.#unanswered = 0;
    this.#joining = this.#nextToJoin();
    const { gen, seq } = this.#position;
    return gen === null ? { sub, task: this.task, after: seq } : { sub, task: this.task, gen, after: seq };
  }

  accept(frame: SubFrame): Verdict {
    if (frame.sub !== this.sub || this.ended) return 'good';
    switch (frame.type) {
      case 'subscribed':
        return this.#subscribed(frame);
      case 'reset':
        return this.#reset(frame);
      case 'snapshot':
        return this.#snapshot(frame);
      case 'event':
        return this.#events([frame.event]);
      case 'events':
        return this.#events(frame.items);
      case 'caught_up':
        if (this.open) tell(this.#served(), (one) => one.caughtUp(frame.seq));
        return 'good';
      case 'delta':
        if (this.open) tell(this.#served(), (one) => one.delta(frame));
        return 'good';
    }
  }

  /** An `error` that names this subscription. */
  fail(frame: ErrorFrame): Verdict {
    if (frame.sub !== this.sub || this.ended) return 'good';
    if (frame.retryable === true) return 'later';
    this.#end(frame.code === 'not_found' ? 'not_found' : 'refused', frame);
    return 'good';
  }

  heartbeat(frame: Heartbeat): Verdict {
    if (this.ended || this.sub <= 0) return 'good';
    if (!this.answered) {
      // Every subscribe gets exactly one outcome; one that is lost must not be waited for for ever.
      this.#unanswered += 1;
      return this.#unanswered >= 2 ? 'again' : 'good';
    }
    if (this.#resetting) return 'good';
    const mark = frame.heads?.[String(this.sub)];
    const checked = checkHeads(this.#position.seq, mark, this.#memory);
    this.#memory = checked.memory;
    if (mark !== undefined && checked.good) {
      this.doubts = 0;
      this.proven = true;
      this.head = mark.head;
    }
    return checked.good ? 'good' : 'again';
  }

  /** The list of tasks names the task, with this log. True if it had ended, and is there again. */
  reopens(gen: string): boolean {
    if (!this.#gone || !this.ended || gen === this.#position.gen || gen === this.#reopenedFor) return false;
    this.#reopenedFor = gen;
    for (const one of this.watchers) {
      one.state = 'waiting';
      one.position = { gen: null, seq: 0 };
    }
    return true;
  }

  /** Watchers who wait to be served together; and the position is set to where it has to be read from for them. */
  #nextToJoin(): Set<Subscription> {
    const waiting = [...this.watchers].filter(({ state }) => state === 'waiting');
    const first = waiting[0];
    let from = this.#served();
    let joining: Subscription[] = [];
    if (first !== undefined) {
      const { gen, seq } = first.position;
      const alike = (one: Subscription) =>
        seq === 0 ? one.position.seq === 0 : one.position.seq > 0 && one.position.gen === gen;
      joining = first.alone ? [first] : waiting.filter(alike);
      // Those who were served already go on meanwhile, so it must not begin after where they are.
      from =
        first.alone || seq === 0 ? joining : [...joining, ...from.filter((one) => one.position.gen === gen)];
    }
    for (const [at, { position }] of from.entries()) {
      if (at === 0 || position.seq < this.#position.seq) this.#position = { ...position };
    }
    return new Set(joining);
  }

  #subscribed(frame: Subscribed): Verdict {
    if (this.answered) this.#joining.clear();
    this.answered = true;
    this.#memory = NOTHING_HEARD;
    if (frame.outcome === 'not_found') {
      this.#end('not_found', null);
      return 'good';
    }
    if (frame.outcome !== 'resumed') {
      this.#resetting = true;
      return 'good';
    }
    this.#resetting = false;
    const { seq } = this.#position;
    const from = frame.from ?? seq + 1;
    const gen = frame.gen ?? this.#position.gen ?? '';
    if (seq > 0 && (from !== seq + 1 || gen !== this.#position.gen)) {
      // Resumed somewhere else than asked: what lies between would be lost without a word. Start this log over.
      for (const one of this.watchers) {
        if (one.state === 'ended') continue;
        one.state = 'waiting';
        one.position = { gen: null, seq: 0 };
      }
      return 'again';
    }
    this.#position = { gen, seq: from - 1 };
    const head = frame.head ?? from - 1;
    const news = { gen, from, head, missed: frame.missed ?? head - from + 1, runs: frame.runs ?? [] };
    const served = this.#addressed();
    this.#joining.clear();
    tell(served, (one) => {
      // Whoever is beyond the end has to hear so by asking for itself.
      one.alone = one.position.seq > head && served.length > 1;
      if (one.alone) one.state = 'waiting';
      else one.resumed(news);
    });
    return 'good';
  }

  #reset(frame: Reset): Verdict {
    this.#resetting = true;
    this.#why = frame.why;
    this.#oldest = frame.oldest;
    tell(this.#addressed(), (one) => one.reset(frame.why, frame.oldest));
    return 'good';
  }

  #snapshot(frame: Snapshot): Verdict {
    const served = this.#addressed();
    this.#joining.clear();
    this.#resetting = false;
    this.#memory = NOTHING_HEARD;
    this.#position = { gen: frame.gen, seq: frame.seq };
    const others = this.#served().filter((one) => !served.includes(one));
    tell([...served, ...others], (one) => {
      const { gen, seq } = one.position;
      if (served.includes(one)) one.snapshot(frame);
      else if (gen !== frame.gen) {
        // That the log is another one holds for all who watch it.
        one.reset(this.#why, this.#oldest);
        one.snapshot(frame);
      } else if (seq < frame.seq) one.state = 'waiting';
    });
    return 'good';
  }

  #events(items: TaskEvent[]): Verdict {
    if (this.#resetting || !this.answered) return 'again';
    const good = followers(this.#position.seq, items);
    const last = items[good - 1];
    if (last !== undefined) {
      this.doubts = 0;
      this.proven = true;
      this.#position = { gen: this.#position.gen, seq: last.seq };
      const fresh = good === items.length ? items : items.slice(0, good);
      tell(this.#served(), (one) => one.events(fresh));
    }
    return good === items.length ? 'good' : 'again';
  }

  /** Whom an outcome concerns: those it was asked for, or else everybody. */
  #addressed(): Subscription[] {
    if (this.#joining.size === 0) return this.#served();
    return [...this.#joining].filter((one) => this.watchers.has(one) && one.state !== 'ended');
  }

  #served(): Subscription[] {
    return [...this.watchers].filter(({ state }) => state === 'replaying' || state === 'live');
  }

  #end(why: 'not_found' | 'refused', error: ErrorFrame | null): void {
    this.#gone = why === 'not_found';
    tell(
      [...this.watchers].filter(({ state }) => state !== 'ended'),
      (one) => one.end(why, error),
    );
  }
}

/** A handler that fails takes nothing from the others; its error is thrown on when all have been told. */
function tell(whom: Subscription[], action: (one: Subscription) => void): void {
  const errors: unknown[] = [];
  for (const one of whom) {
    try {
      action(one);
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) throw errors[0];
}
