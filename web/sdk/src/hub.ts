// One connection for several tabs. To each of them it looks like a server that speaks the protocol: a tab keeps its own
// positions and checks them as always, and what the connection itself goes through is told beside it. It knows no
// channel, no lock and no worker; whoever holds it hands in what the tabs say.

import type { Connection, ConnectionStatus } from './connection.js';
import type {
  ClientFrame,
  HeadMark,
  Heartbeat,
  Notice,
  ServerFrame,
  SubscribeEntry,
  Task,
  TasksFrame,
} from './frames.js';
import type { Problem } from './http.js';
import type { Subscription } from './subscription.js';
import type { Make } from './share.js';

/** How often each tab hears from here, whatever the server does. */
const PULSE_MS = 10_000;

/** A tab that has answered nothing for so long is gone, or asleep and will find out when it wakes. */
const GONE_MS = 120_000;

export class Hub {
  readonly id: string;
  readonly connection: Connection;
  readonly guests = new Set<Guest>();
  readonly notices = new Map<string, Notice>();
  readonly #tasks = new Map<string, Task>();
  #listed = false;
  #rev = 0;
  #timer: unknown;
  readonly #hidden: () => boolean;

  /** `hidden`: whether it lives in a page that nobody sees, and whose timers a browser slows down. */
  constructor(make: Make, hidden: () => boolean = () => false) {
    this.#hidden = hidden;
    this.connection = make({
      environment: {
        visible: () => [...this.guests].some((guest) => guest.visible),
        // The tabs tell when they wake up.
        listen: () => () => {},
      },
    });
    this.id = this.connection.client;
    const heartbeat = (frame: Heartbeat) => {
      for (const guest of this.guests) guest.heartbeat(frame);
    };
    this.connection.listen({
      status: (status) => this.#changed(status),
      tasks: (frame) => this.#list(frame),
      notice: (notice) => {
        if (notice.over) this.notices.delete(notice.code);
        else this.notices.set(notice.code, notice);
        for (const guest of this.guests) guest.post(notice);
      },
      heartbeat,
    });
    this.connection.start();
    this.#pulse();
  }

  enter(post: (frame: ServerFrame) => void, left?: () => void): Guest {
    const guest = new Guest(this, post, left);
    this.guests.add(guest);
    return guest;
  }

  close(): void {
    this.connection.env.clearTimer(this.#timer);
    for (const guest of [...this.guests]) guest.leave();
    this.connection.stop();
  }

  /** How the connection is doing, to one tab or to all. */
  tell(guests: Iterable<Guest> = this.guests): void {
    const { status } = this.connection;
    for (const guest of guests) guest.post({ type: 'hub', status, hidden: this.#hidden() });
  }

  /** The whole list, as far as it is known. */
  listFor(guest: Guest): void {
    if (!this.#listed) {
      this.connection.askForTasks();
      return;
    }
    const items = [...this.#tasks.values()];
    guest.post({ type: 'tasks', rev: this.#rev, full: true, items, removed: [] });
  }

  #changed(status: ConnectionStatus): void {
    // A fresh connection is told the notices that still hold.
    if (status.state !== 'connected') this.notices.clear();
    this.tell();
  }

  #list(frame: TasksFrame): void {
    if (frame.full) this.#tasks.clear();
    for (const task of frame.items) this.#tasks.set(task.id, task);
    for (const id of frame.removed ?? []) this.#tasks.delete(id);
    this.#listed ||= frame.full;
    this.#rev += 1;
    for (const guest of this.guests) if (guest.listens) guest.post({ ...frame, rev: this.#rev });
  }

  #pulse(): void {
    const now = this.connection.env.now();
    for (const guest of [...this.guests]) if (now - guest.heardAt > GONE_MS) guest.leave();
    this.tell();
    this.#timer = this.connection.env.setTimer(() => this.#pulse(), PULSE_MS);
  }
}

export class Guest {
  readonly post: (frame: ServerFrame) => void;
  heardAt: number;
  visible = true;
  /** It shows the list of tasks. */
  listens = false;
  readonly #hub: Hub;
  readonly #watched = new Map<number, Subscription>();
  readonly #commands = new Map<string, AbortController>();

  readonly #left: () => void;

  constructor(hub: Hub, post: (frame: ServerFrame) => void, left = () => {}) {
    this.#hub = hub;
    this.post = post;
    this.#left = left;
    this.heardAt = hub.connection.env.now();
  }

  receive(frame: ClientFrame): void {
    const hub = this.#hub;
    const { connection } = hub;
    this.heardAt = hub.connection.env.now();
    switch (frame.type) {
      case 'hello': {
        const server = { version: '', boot: hub.id };
        this.post({ type: 'welcome', protocol: 1, connection: hub.id, server });
        hub.tell([this]);
        for (const notice of hub.notices.values()) this.post(notice);
        for (const entry of frame.subscribe) this.#watch(entry);
        if (frame.tasks) this.#list();
        return;
      }
      case 'subscribe':
        this.#watch(frame);
        return;
      case 'unsubscribe':
        this.#unwatch(frame.sub);
        return;
      case 'tasks':
        this.#list();
        return;
      case 'pong':
        this.visible = frame.visible ?? this.visible;
        return;
      case 'wake':
        this.visible = true;
        connection.wake(frame.why);
        hub.tell([this]);
        return;
      case 'retry':
        connection.retry();
        hub.tell([this]);
        return;
      case 'command': {
        const { type: _, id, ...command } = frame;
        const stop = new AbortController();
        this.#commands.set(id, stop);
        const answered = (answer: ServerFrame) => {
          if (this.#commands.get(id) !== stop) return;
          this.#commands.delete(id);
          this.post(answer);
        };
        connection.command(command, { id, signal: stop.signal }).then(
          (result) => answered({ type: 'done', id, result }),
          ({ code, message }: Problem) =>
            answered({ type: 'error', id, code, message, retryable: code === 'aborted' }),
        );
        return;
      }
      case 'cancel': {
        const stop = this.#commands.get(frame.id);
        this.#commands.delete(frame.id);
        stop?.abort();
        return;
      }
      case 'bye':
        this.leave();
        return;
    }
  }

  heartbeat({ at }: Heartbeat): void {
    const heads: Record<string, HeadMark> = {};
    for (const [sub, one] of this.#watched) {
      const head = this.#hub.connection.headOf(one);
      if (head !== null) heads[sub] = { sent: one.position.seq, head: Math.max(head, one.position.seq) };
    }
    this.post({ type: 'heartbeat', at, heads });
  }

  leave(): void {
    this.#hub.guests.delete(this);
    for (const sub of [...this.#watched.keys()]) this.#unwatch(sub);
    for (const stop of this.#commands.values()) stop.abort();
    this.#commands.clear();
    this.#left();
  }

  #list(): void {
    this.listens = true;
    this.#hub.listFor(this);
  }

  #unwatch(sub: number): void {
    const one = this.#watched.get(sub);
    this.#watched.delete(sub);
    if (one !== undefined) this.#hub.connection.unwatch(one);
  }

  #watch({ sub, task, gen, after }: SubscribeEntry): void {
    for (const [old, one] of [...this.#watched]) if (one.task === task) this.#unwatch(old);
    const { post } = this;
    const from = { gen: gen ?? null, seq: after };
    const one = this.#hub.connection.watch(
      task,
      {
        resumed: (news) => post({ type: 'subscribed', sub, task, outcome: 'resumed', ...news }),
        snapshot: (frame, { why, had, oldest }) => {
          const { gen, seq, head } = frame;
          post({ type: 'subscribed', sub, task, outcome: 'reset', gen, from: seq + 1, head, runs: [] });
          post({ type: 'reset', sub, gen, why: why ?? 'generation', have: had.seq, oldest, head });
          post({ ...frame, sub });
        },
        events: (items) =>
          post({ type: 'events', sub, first: items[0]!.seq, last: items[items.length - 1]!.seq, items }),
        caughtUp: ({ seq }) => post({ type: 'caught_up', sub, seq }),
        delta: (delta) => post({ ...delta, sub }),
        ended: (why, error) =>
          post(
            why === 'refused' && error !== null
              ? { ...error, sub }
              : { type: 'subscribed', sub, task, outcome: 'not_found' },
          ),
      },
      from,
    );
    this.#watched.set(sub, one);
  }
}
