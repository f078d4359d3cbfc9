// One task as the page watches it: the log the client keeps, drawn into rows at most once per frame of the screen.

import { hasEnded } from '@rejoin/client';
import type { ResetNews, Run, Subscription, TaskEvent } from '@rejoin/client';
import { TaskLog, type LogSink } from '@rejoin/client/log';
import { Timeline, type Row } from '../timeline';
import { live } from './live.svelte';

export type ResetNotice = 'replaced' | 'too_far' | 'retention' | null;

export class TaskWatch implements LogSink {
  readonly task: string;

  rows = $state.raw<readonly Row[]>([]);
  runs = $state.raw<ReadonlyMap<string, Run>>(new Map());
  drafts = $state.raw<readonly [string, string][]>([]);
  gone = $state(false);
  refused = $state<string | null>(null);
  /** Up to the head of the moment of opening; before, more of the past is still coming in. */
  settled = $state(false);
  notice = $state<ResetNotice>(null);
  hasEarlier = $state(false);
  /** Earlier runs that are here and not shown. */
  hiddenRuns = $state(0);
  loading = $state(false);
  filling = $state(0);
  pagingError = $state<string | null>(null);
  /** For tests and for the curious: what has been applied. */
  first = $state(0);
  last = $state(0);
  count = $state(0);
  /** True for the one update that puts rows in before all others, so that what is read stays where it is. */
  prepended = $state(false);
  /** Calls whose whole output is shown. */
  unfolded = $state.raw<ReadonlySet<string>>(new Set());

  private readonly timeline = new Timeline();
  private readonly log: TaskLog;
  private subscription: Subscription;
  private frame = 0;
  private caughtUpOnce = false;

  constructor(task: string) {
    this.task = task;
    this.log = new TaskLog((query) => live.api.events(task, query), this);
    this.subscription = live.connection.watch(task, this.log);
  }

  close(): void {
    live.connection.unwatch(this.subscription);
    cancelAnimationFrame(this.frame);
  }

  /** A person asks for it once more. */
  again(): void {
    live.connection.unwatch(this.subscription);
    this.gone = false;
    this.refused = null;
    this.settled = this.caughtUpOnce = false;
    this.subscription = live.connection.watch(this.task, this.log);
  }

  focus(run: string | null): void {
    this.timeline.only = run;
    this.draw();
  }

  toggle(run: string): void {
    this.timeline.toggle(run);
    this.flush();
  }

  learn(runs: readonly Run[]): void {
    this.timeline.learn(runs);
    this.draw();
  }

  /** Events of a run that lies further back than what is held. */
  insertRun(items: TaskEvent[]): void {
    this.inserted(items);
  }

  get gen(): string | null {
    return this.log.gen;
  }

  get heldFrom(): number {
    return this.log.first;
  }

  async loadEarlier(): Promise<void> {
    if (this.log.loading) return;
    const before = this.log.first;
    await this.log.loadEarlier();
    if (this.log.first < before) {
      this.prepended = true;
      this.flush();
      requestAnimationFrame(() => (this.prepended = false));
    }
  }

  showEarlierRuns(): void {
    this.timeline.showEarly = true;
    this.prepended = true;
    this.flush();
    requestAnimationFrame(() => (this.prepended = false));
  }

  unfold(key: string): void {
    const unfolded = new Set(this.unfolded);
    if (!unfolded.delete(key)) unfolded.add(key);
    this.unfolded = unfolded;
  }

  fillAgain(): void {
    void this.log.fill();
  }

  get active(): Run[] {
    return [...this.runs.values()].filter((run) => !hasEnded(run.state));
  }

  // The sink.

  cleared(): void {
    this.timeline.clear();
    this.caughtUpOnce = false;
    this.draw();
  }

  appended(items: TaskEvent[]): void {
    this.timeline.append(items);
    this.draw();
  }

  inserted(items: TaskEvent[]): void {
    if (items.length === 0) return;
    this.timeline.insert(items);
    this.draw();
  }

  stated(runs: Run[], calls: TaskEvent[]): void {
    // A task that was removed may be there again.
    this.gone = false;
    this.timeline.learn(runs);
    // Calls that are open at a snapshot are events older than it.
    if (calls.length > 0) this.timeline.insert(calls);
    this.draw();
  }

  delta(): void {
    this.draw();
  }

  reset(news: ResetNews): void {
    if (news.had.seq === 0) return;
    this.notice =
      news.why === 'too_far'
        ? 'too_far'
        : news.why === 'retention'
          ? 'retention'
          : news.why === null
            ? null
            : 'replaced';
  }

  caughtUp(recovered: number | null): void {
    this.caughtUpOnce = true;
    // Behind a snapshot at the end of the log nothing would be shown; that end itself is what people come for.
    if (this.timeline.size > 0 || !this.log.hasEarlier) this.timeline.settle();
    else void this.loadEarlier().then(() => this.settleLate());
    if (recovered !== null && recovered > 0) {
      live.toast(`Caught up on ${recovered.toLocaleString('en')} ${recovered === 1 ? 'event' : 'events'}`);
    }
    this.draw();
  }

  private settleLate(): void {
    this.timeline.settle();
    this.draw();
  }

  ended(why: 'not_found' | 'refused'): void {
    if (why === 'not_found') this.gone = true;
    else this.refused = 'The server does not send this task any more.';
  }

  changed(): void {
    this.draw();
  }

  private draw(): void {
    if (this.frame !== 0) return;
    // A hidden tab gets no frames; what it would draw waits until somebody looks.
    this.frame = requestAnimationFrame(() => this.flush());
  }

  private flush(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.rows = this.timeline.rows();
    this.runs = new Map(this.timeline.runs().map((run) => [run.id, run]));
    this.drafts = this.subscription.drafts.entries();
    this.hasEarlier = this.log.hasEarlier;
    this.hiddenRuns = this.timeline.hidden;
    this.loading = this.log.loading;
    this.filling = this.log.gaps.reduce((sum, gap) => sum + gap.to - gap.from + 1, 0);
    this.pagingError = this.log.problem?.message ?? null;
    this.first = this.log.first;
    this.last = this.log.last;
    this.count = this.timeline.size;
    // Last, so that whoever waits for it finds everything else in place.
    this.settled = this.caughtUpOnce;
  }
}
