// A world for the client under test: a clock that moves when told, sockets that do what the test says.

import { Connection, type ConnectionOptions } from '../src/connection';
import type { Environment, Line, Locks, Socket, WakeUp } from '../src/environment';
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
  /** For tests: subscribes that got their answer. */
  readonly answered = new Set<number>();

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
  /** The page is frozen, or gone: nothing happens in it. */
  stopped = false;
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
    const environment = { ...this.environment, ...more.environment };
    return new Connection({ url: 'ws://test/api/v1/live', tasks, ...more, environment });
  }

  get socket(): FakeSocket {
    return this.sockets[this.sockets.length - 1]!;
  }

  pass(ms: number): void {
    const end = this.time + ms;
    if (this.stopped) {
      this.time = end;
      return;
    }
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

/** Lets everything happen that waits for nothing but its turn. */
export async function turns(): Promise<void> {
  for (let turn = 0; turn < 5; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

type Answer = Response | Promise<Response>;

/** A server that is asked by calls: what it answers by path, and what it was asked. */
export class Calls {
  readonly asked: { method: string; path: string; headers: Record<string, string>; body: string | null }[] =
    [];
  private readonly routes: [RegExp, (path: string, init: RequestInit) => Answer][] = [];
  up = true;

  on(path: RegExp, answer: (path: string, init: RequestInit) => Answer): this {
    this.routes.unshift([path, answer]);
    return this;
  }

  readonly fetch = (async (url: string, init: RequestInit = {}) => {
    const path = new URL(url).pathname.replace('/api/v1', '') + new URL(url).search;
    const { method = 'GET', body = null } = init;
    this.asked.push({ method, path, headers: init.headers as Record<string, string>, body: body as string });
    if (!this.up) throw new TypeError('no network');
    const route = this.routes.find(([pattern]) => pattern.test(path));
    if (route === undefined) return problem(404, 'not_found');
    const { signal } = init;
    const answer = Promise.resolve(route[1](path, init));
    if (!signal) return answer;
    return new Promise<Response>((done, failed) => {
      const stop = () => failed(new DOMException('aborted', 'AbortError'));
      signal.addEventListener('abort', stop);
      void answer.then(done, failed).finally(() => signal.removeEventListener('abort', stop));
    });
  }) as typeof globalThis.fetch;

  of(path: RegExp): (typeof this.asked)[number][] {
    return this.asked.filter((one) => path.test(one.path));
  }
}

export function json(body: unknown, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: { 'Content-Type': 'application/json', ...headers },
  });
}

export function problem(status: number, code: string, more: Record<string, unknown> = {}): Response {
  return json({ status, code, title: code, detail: code, ...more }, status);
}

/** A page of a log of `head` events, as the server gives it. */
export function pageOf(query: string, head: number, gen = GEN, oldest = 1, most = 500): Response {
  const given = new URLSearchParams(query);
  const after = Number(given.get('after') ?? 0);
  const about = { oldest, head, gen };
  if (after > 0 && given.get('gen') !== gen) return problem(409, 'generation', about);
  if (after > head) return problem(409, 'future', about);
  if (after > 0 && after < oldest - 1) return problem(410, 'retention', about);
  const first = Math.max(after + 1, oldest);
  const last = Math.min(head, first + most - 1);
  const items = Array.from({ length: Math.max(0, last - first + 1) }, (_, at) => event(first + at));
  return json({ task: 'a', ...about, items, next: items.at(-1)?.seq ?? after, more: last < head });
}

/** A stream of events that a test writes. */
export class Stream {
  private writer!: ReadableStreamDefaultController<Uint8Array>;
  cancelled = false;
  readonly response = new Response(
    new ReadableStream<Uint8Array>({
      start: (writer) => void (this.writer = writer),
      cancel: () => void (this.cancelled = true),
    }),
    { headers: { 'Content-Type': 'text/event-stream' } },
  );

  write(text: string): void {
    this.writer.enqueue(new TextEncoder().encode(text));
  }

  /** Frames as the server writes them: the name in front, the data without `sub`. */
  say(...frames: object[]): void {
    for (const frame of frames) {
      const { sub: _, ...data } = frame as Record<string, unknown>;
      const { type, gen, seq, last, event: one } = data as Record<string, unknown>;
      const at = seq ?? last ?? (one as TaskEvent | undefined)?.seq;
      const named = type === 'event' || type === 'events' || type === 'snapshot';
      const id = named ? `id: ${String(gen ?? GEN)}.${String(at)}\n` : '';
      this.write(`event: ${String(type)}\n${id}data: ${JSON.stringify(data)}\n\n`);
    }
  }

  end(): void {
    this.writer.close();
  }

  /** Whoever asked for it wants it no more. */
  stopBy(signal: AbortSignal | null | undefined): void {
    signal?.addEventListener('abort', () => {
      this.cancelled = true;
      this.writer.error(new DOMException('aborted', 'AbortError'));
    });
  }
}

/** Lines between the tabs of one browser: what is said on one is heard by all others of that name, a turn later. */
export class Lines {
  private readonly open_ = new Set<{ name: string; line: Line }>();
  /** Lines of tabs that are frozen: they hear nothing and say nothing. */
  readonly frozen = new Set<Line>();

  readonly open = (name: string): Line => {
    const line: Line = {
      onmessage: null,
      postMessage: (message) => {
        if (this.frozen.has(line)) return;
        const copy = structuredClone(message);
        for (const other of [...this.open_]) {
          if (other.name !== name || other.line === line) continue;
          queueMicrotask(() => {
            if (this.open_.has(other) && !this.frozen.has(other.line)) {
              other.line.onmessage?.({ data: structuredClone(copy) as never });
            }
          });
        }
      },
      close: () => void this.open_.delete(entry),
    };
    const entry = { name, line };
    this.open_.add(entry);
    return line;
  };
}

interface Claim {
  name: string;
  tab: object;
  held: () => Promise<void>;
  granted: boolean;
  finish: (error?: unknown) => void;
}

/** The locks of one browser, as the standard has them. */
export class LockTable {
  /** Nothing is granted. */
  busy_ = false;
  private claims: Claim[] = [];

  get busy(): boolean {
    return this.busy_;
  }

  set busy(busy: boolean) {
    this.busy_ = busy;
    for (const { name } of [...this.claims]) this.grant(name);
  }

  holders(name: RegExp): object[] {
    return this.claims.filter((claim) => claim.granted && name.test(claim.name)).map(({ tab }) => tab);
  }

  tab(): Locks & { die(): void; tab: object } {
    const tab = {};
    return {
      tab,
      request: (name, { steal, signal }, held) =>
        new Promise<void>((done, failed) => {
          const claim: Claim = {
            name,
            tab,
            held,
            granted: false,
            finish: (error) => {
              this.claims = this.claims.filter((other) => other !== claim);
              if (error === undefined) done();
              else failed(error);
              this.grant(name);
            },
          };
          const aborted = () => !claim.granted && claim.finish(new DOMException('aborted', 'AbortError'));
          if (signal?.aborted) {
            failed(new DOMException('aborted', 'AbortError'));
            return;
          }
          signal?.addEventListener('abort', aborted);
          if (steal) {
            const holder = this.claims.find((other) => other.name === name && other.granted);
            this.claims.unshift(claim);
            this.start(claim);
            holder?.finish(new DOMException('stolen', 'AbortError'));
          } else {
            this.claims.push(claim);
            queueMicrotask(() => this.grant(name));
          }
        }),
      /** The process of the tab is gone, and its locks with it. */
      die: () => {
        const gone = this.claims.filter((claim) => claim.tab === tab);
        this.claims = this.claims.filter((claim) => claim.tab !== tab);
        for (const { name } of gone) this.grant(name);
      },
    };
  }

  private grant(name: string): void {
    if (this.busy_ || this.claims.some((claim) => claim.name === name && claim.granted)) return;
    const next = this.claims.find((claim) => claim.name === name);
    if (next !== undefined) this.start(next);
  }

  private start(claim: Claim): void {
    claim.granted = true;
    void Promise.resolve()
      .then(claim.held)
      .then(
        () => this.claims.includes(claim) && claim.finish(),
        (error: unknown) => this.claims.includes(claim) && claim.finish(error ?? 'failed'),
      );
  }
}
