// A world for the client under test: a clock that moves when told, sockets that do what the test says.

import { Connection, type ConnectionOptions } from '../src/connection';
import type { Environment, Socket, WakeUp } from '../src/environment';
import type { ServerFrame, TaskEvent } from '../src/frames';
import type { ResetNews, SubscriptionHandler } from '../src/subscription';
import type { Snapshot } from '../src/frames';

export class FakeSocket implements Socket {
  readyState = 0;
  onopen: ((event: unknown) => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  onerror: ((event: unknown) => void) | null = null;
  readonly sent: Record<string, unknown>[] = [];

  send(text: string): void {
    if (this.readyState !== 1) throw new Error('not open');
    this.sent.push(JSON.parse(text) as Record<string, unknown>);
  }

  close(): void {
    this.readyState = 2;
  }

  open(): void {
    this.readyState = 1;
    this.onopen?.({});
  }

  /** What the server says. */
  say(...frames: (ServerFrame | Record<string, unknown>)[]): void {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
  }

  /** The server, or the network, closes. */
  drop(code = 1006, reason = ''): void {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  welcome(boot = 'b1'): void {
    this.open();
    this.say({ type: 'welcome', protocol: 1, connection: 'c-1', server: { version: '0.1.0', boot } });
  }

  /** The subscribe entries of the hello, or the last subscribe frame. */
  get subscribes(): { sub: number; task: string; gen?: string; after: number }[] {
    const entries: { sub: number; task: string; gen?: string; after: number }[] = [];
    for (const frame of this.sent) {
      if (frame.type === 'hello') entries.push(...(frame.subscribe as typeof entries));
      if (frame.type === 'subscribe') entries.push(frame as unknown as (typeof entries)[number]);
    }
    return entries;
  }

  of(type: string): Record<string, unknown>[] {
    return this.sent.filter((frame) => frame.type === type);
  }
}

interface Timer {
  at: number;
  order: number;
  action: () => void;
}

export class World {
  time = 1_000_000;
  chance = 0.5;
  isVisible = true;
  isOnline = true;
  readonly sockets: FakeSocket[] = [];
  private timers: Timer[] = [];
  private order = 0;
  private onWake: (why: WakeUp) => void = () => {};
  private onNetwork: () => void = () => {};
  listeners = 0;
  answer: typeof globalThis.fetch = () => Promise.reject(new TypeError('no network'));

  readonly environment: Partial<Environment> = {
    now: () => this.time,
    setTimer: (action, ms) => {
      const timer = { at: this.time + ms, order: this.order++, action };
      this.timers.push(timer);
      return timer;
    },
    clearTimer: (timer) => {
      this.timers = this.timers.filter((other) => other !== timer);
    },
    random: () => this.chance,
    uuid: () => '00000000-0000-4000-8000-000000000001',
    // Calls get nowhere, unless a test says what they get.
    fetch: (...args) => this.answer(...args),
    openSocket: () => {
      const socket = new FakeSocket();
      this.sockets.push(socket);
      return socket;
    },
    visible: () => this.isVisible,
    online: () => this.isOnline,
    listen: (onWake, onNetwork) => {
      this.onWake = onWake;
      this.onNetwork = onNetwork;
      this.listeners += 1;
      return () => {
        this.listeners -= 1;
        this.onWake = () => {};
        this.onNetwork = () => {};
      };
    },
  };

  connection(tasks = true, more: ConnectionOptions = {}): Connection {
    return new Connection({ url: 'ws://test/api/v1/live', tasks, environment: this.environment, ...more });
  }

  get socket(): FakeSocket {
    return this.sockets[this.sockets.length - 1]!;
  }

  pass(ms: number): void {
    const end = this.time + ms;
    for (;;) {
      const due = this.timers
        .filter((timer) => timer.at <= end)
        .sort((a, b) => a.at - b.at || a.order - b.order)[0];
      if (due === undefined) break;
      this.timers = this.timers.filter((timer) => timer !== due);
      this.time = Math.max(this.time, due.at);
      due.action();
    }
    this.time = end;
  }

  /** Lets time pass until the client opens another socket, and no longer. */
  untilNextSocket(): void {
    const before = this.sockets.length;
    for (let ms = 0; ms < 200_000 && this.sockets.length === before; ms += 10) this.pass(10);
  }

  wake(why: WakeUp = 'visible'): void {
    this.onWake(why);
  }

  network(online: boolean): void {
    this.isOnline = online;
    this.onNetwork();
  }
}

/** Writes down everything a subscription tells. */
export class Diary implements SubscriptionHandler {
  readonly seqs: number[] = [];
  readonly told: string[] = [];
  readonly recovered: (number | null)[] = [];
  readonly resets: ResetNews[] = [];
  readonly snapshots: { snapshot: Snapshot; news: ResetNews }[] = [];
  onEvents: ((items: TaskEvent[]) => void) | null = null;

  resumed(): void {
    this.told.push('resumed');
  }
  reset(news: ResetNews): void {
    this.told.push('reset');
    this.resets.push(news);
  }
  snapshot(snapshot: Snapshot, news: ResetNews): void {
    this.told.push('snapshot');
    this.snapshots.push({ snapshot, news });
  }
  events(items: TaskEvent[]): void {
    this.told.push('events');
    this.seqs.push(...items.map((item) => item.seq));
    this.onEvents?.(items);
  }
  delta(): void {
    this.told.push('delta');
  }
  caughtUp(news: { recovered: number | null }): void {
    this.told.push('caught_up');
    this.recovered.push(news.recovered);
  }
  ended(why: string): void {
    this.told.push(`ended ${why}`);
  }
}

export const GEN = '9d2e77c1a0b4f3e8';

export function event(
  seq: number,
  kind = 'thought',
  data: Record<string, unknown> = { text: `t${seq}` },
): TaskEvent {
  return { task: 'a', run: 'r1', seq, at: '2026-11-20T20:41:07.123456Z', kind, data };
}

export function events(sub: number, first: number, last: number): ServerFrame {
  const items = Array.from({ length: last - first + 1 }, (_, at) => event(first + at));
  return { type: 'events', sub, first, last, items };
}

export function resumed(sub: number, from: number, head: number, gen = GEN): ServerFrame {
  return {
    type: 'subscribed',
    sub,
    task: 'a',
    gen,
    outcome: 'resumed',
    from,
    head,
    missed: head - from + 1,
    runs: [],
  };
}

export function resetTo(
  sub: number,
  why: string,
  seq: number,
  head: number,
  gen = GEN,
): Record<string, unknown>[] {
  return [
    { type: 'subscribed', sub, task: 'a', gen, outcome: 'reset', from: seq + 1, head, runs: [] },
    { type: 'reset', sub, gen, why, have: 3, oldest: 1, head },
    { type: 'snapshot', sub, gen, seq, head, state: { task: null, runs: [], calls: [] } },
  ];
}

export function heartbeat(heads: Record<string, { sent: number; head: number }> = {}): ServerFrame {
  return { type: 'heartbeat', at: '2026-11-20T20:41:07.123456Z', heads };
}
