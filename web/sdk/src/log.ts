// What a client holds of one task's log: which stretches, of which generation, and the paging that closes the holes a
// reset leaves. It knows no socket; a subscription feeds it, and it hands events to a sink.

import {
  Problem,
  type ErrorFrame,
  type EventPage,
  type EventQuery,
  type ResetNews,
  type Run,
  type Snapshot,
  type SubscriptionHandler,
  type TaskEvent,
} from './index.js';

export { foldRun } from './fold.js';

export interface LogSink {
  /** Forget every event and run: the log is another one. */
  cleared(): void;
  /** Events that follow all known ones. */
  appended(items: TaskEvent[]): void;
  /** Events older than some of the known ones, in ascending order. */
  inserted(items: TaskEvent[]): void;
  /** Runs as they stand, e.g. those not ended at the moment of subscribing; tool calls that are open at a snapshot. */
  stated(runs: Run[], calls: TaskEvent[]): void;
  /** The text that is being written has changed. */
  delta(): void;
  reset(news: ResetNews): void;
  caughtUp(recovered: number | null): void;
  ended(why: 'not_found' | 'refused', error: ErrorFrame | null): void;
  /** Something about stretches and paging changed. */
  changed(): void;
}

/** Sequence numbers from `from` to `to`, both included, that are in the log and not here. */
export interface Gap {
  from: number;
  to: number;
}

type Fetch = (query: EventQuery) => Promise<EventPage>;

const PAGE = 500;

export class TaskLog implements SubscriptionHandler {
  gen: string | null = null;
  /** The oldest event the server still has, as far as known. */
  oldest = 1;
  /** The first event we hold without a gap up to `last`; `last` + 1 if we hold none. */
  first = 1;
  last = 0;
  gaps: Gap[] = [];
  loading = false;
  /** The last paging failed; it is tried again after the next reconnect, or by hand. */
  problem: Problem | null = null;

  private readonly fetch: Fetch;
  private readonly sink: LogSink;
  /** Answers to calls made for an older log are thrown away. */
  private era = 0;

  constructor(fetch: Fetch, sink: LogSink) {
    this.fetch = fetch;
    this.sink = sink;
  }

  get hasEarlier(): boolean {
    return this.gen !== null && this.first > this.oldest;
  }

  resumed(news: { gen: string; from: number; head: number; missed: number; runs: Run[] }): void {
    if (this.last === 0) {
      this.gen = news.gen;
      this.oldest = news.from;
      this.first = news.from;
      this.last = news.from - 1;
    } else if (this.gen !== news.gen) {
      this.clear();
      this.gen = news.gen;
      this.oldest = this.first = news.from;
      this.last = news.from - 1;
    }
    this.sink.stated(news.runs, []);
    this.sink.changed();
    void this.fill();
  }

  reset(news: ResetNews): void {
    this.oldest = news.oldest;
    this.sink.reset(news);
    this.sink.changed();
  }

  snapshot(snapshot: Snapshot, news: ResetNews): void {
    const same =
      snapshot.gen === this.gen && this.last > 0 && news.why !== 'generation' && news.why !== 'future';
    if (!same) {
      this.clear();
      this.gen = snapshot.gen;
      this.first = snapshot.seq + 1;
    } else if (snapshot.seq > this.last) {
      const gap = { from: Math.max(this.last + 1, news.oldest), to: snapshot.seq };
      if (gap.from <= gap.to) this.gaps = [...this.gaps, gap];
    }
    this.oldest = news.oldest;
    this.last = snapshot.seq;
    this.sink.stated(snapshot.state.runs ?? [], snapshot.state.calls ?? []);
    this.sink.changed();
    void this.fill();
  }

  events(items: TaskEvent[]): void {
    const last = items[items.length - 1];
    if (last === undefined) return;
    this.last = last.seq;
    this.sink.appended(items);
  }

  delta(): void {
    this.sink.delta();
  }

  caughtUp(news: { seq: number; recovered: number | null }): void {
    this.sink.caughtUp(news.recovered);
  }

  ended(why: 'not_found' | 'refused', error: ErrorFrame | null): void {
    this.sink.ended(why, error);
  }

  /** One page further back than what is held. */
  async loadEarlier(): Promise<void> {
    if (!this.hasEarlier) return;
    await this.page(async () => {
      const page = await this.fetch({ gen: this.gen, before: this.first, limit: PAGE });
      return () => {
        this.oldest = page.oldest;
        const start = page.items[0]?.seq;
        if (start === undefined || !page.more) this.oldest = start ?? this.first;
        this.first = start ?? this.first;
        this.sink.inserted(page.items);
      };
    });
  }

  /** Closes the holes, newest first, reading back. */
  async fill(): Promise<void> {
    while (this.gaps.length > 0) {
      const gap = this.gaps[this.gaps.length - 1]!;
      const done = await this.page(async () => {
        const page = await this.fetch({ gen: this.gen, before: gap.to + 1, limit: PAGE });
        return () => {
          const items = page.items.filter((item) => item.seq >= gap.from);
          const start = items[0]?.seq ?? gap.from;
          const rest = { from: Math.max(gap.from, page.oldest), to: start - 1 };
          this.gaps = this.gaps.flatMap((other) =>
            other !== gap ? [other] : rest.from <= rest.to ? [rest] : [],
          );
          this.sink.inserted(items);
        };
      });
      if (!done) return;
    }
  }

  private clear(): void {
    this.era += 1;
    this.gaps = [];
    this.loading = false;
    this.problem = null;
    this.sink.cleared();
  }

  /** One call at a time, thrown away if the log was replaced meanwhile. */
  private async page(call: () => Promise<() => void>): Promise<boolean> {
    if (this.loading) return false;
    const { era } = this;
    this.loading = true;
    this.problem = null;
    this.sink.changed();
    try {
      const apply = await call();
      if (era !== this.era) return false;
      apply();
      return true;
    } catch (error) {
      if (era === this.era) {
        this.problem = error instanceof Problem ? error : new Problem(0, 'internal', String(error));
      }
      return false;
    } finally {
      if (era === this.era) {
        this.loading = false;
        this.sink.changed();
      }
    }
  }
}
