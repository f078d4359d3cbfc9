// Commands that must not be forgotten: kept by the browser from before they are tried until the server has answered,
// over reloads and in sight of all tabs, of which one sends. What is too old is shown and not sent. It holds no
// credential and knows no socket.

import { GIVE_UP_MS } from './command.js';
import type { Connection } from './connection.js';
import { browserEnvironment, type Environment } from './environment.js';
import type { Command, Run } from './frames.js';
import { Problem } from './http.js';
import { linesOf, locksOf, type Line, type Locks } from './tabs.js';

export type OutboxState = 'waiting' | 'sending' | 'refused' | 'expired';

export interface OutboxEntry {
  readonly id: string;
  readonly command: Command;
  /** When it was given. */
  readonly at: number;
  readonly state: OutboxState;
  /** It was sent at least once, so it may have arrived. */
  readonly tried: boolean;
  /** Why the server refused it. */
  readonly error: { code: string; message: string } | null;
  /** The browser keeps it over reloads. */
  readonly kept: boolean;
}

export interface OutboxOptions {
  connection: Pick<Connection, 'command'>;
  /** What is older is not sent any more. */
  maxAgeMs?: number;
  /** Under which name the browser keeps it. */
  name?: string;
  environment?: Partial<Environment>;
  shelf?: Shelf;
}

/** As it is kept. */
interface Kept {
  id: string;
  command: Command;
  at: number;
  tried: boolean;
  error: { code: string; message: string } | null;
  /** Grows with each edit, so that whoever sends it notices. */
  edition: number;
}

type Kepts = Map<string, Kept>;

/** Where entries lie. `change` reads, acts and writes as one step that no other tab gets between. */
export interface Shelf {
  change<T>(action: (entries: Kepts) => T): Promise<T>;
  /** Whether it will be there after a reload. */
  keeps(id: string): boolean;
}

/** What a frame of a client may hold, with room for the rest of the frame. */
const MAX_BYTES = 60_000;
const MAX_ENTRIES = 100;

/** How long an expired or refused one is shown, at most. */
const FORGET_MS = 7 * 24 * 3_600_000;

const STORE = 'outbox';

/** IndexedDB; and this page's memory, for what the browser will not take: private windows, a full disk. */
export function browserShelf(name: string): Shelf {
  const memory: Kepts = new Map();
  let opening: Promise<IDBDatabase> | null = null;
  const open = () =>
    (opening ??= new Promise<IDBDatabase>((done, failed) => {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
      request.onsuccess = () => {
        // Another version of the page must not wait for this one.
        request.result.onversionchange = () => request.result.close();
        request.result.onclose = () => (opening = null);
        done(request.result);
      };
      request.onerror = request.onblocked = () => failed(request.error);
    }));

  /** Acts on what there is and hands each difference on. */
  function act<T>(held: Kept[], action: (entries: Kepts) => T, put: (one: Kept) => void, drop: (id: string) => void) {
    const before = new Map([...held.map((one) => [one.id, one] as const), ...memory]);
    const entries = new Map(before);
    const result = action(entries);
    for (const [id, one] of entries) if (before.get(id) !== one) put(one);
    for (const id of before.keys()) if (!entries.has(id)) drop(id);
    return result;
  }

  return {
    keeps: (id) => !memory.has(id),
    async change(action) {
      let held: Kept[] = [];
      const dropped: string[] = [];
      try {
        const database = await open();
        const result = await new Promise<ReturnType<typeof action>>((done, failed) => {
          const transaction = database.transaction(STORE, 'readwrite');
          const store = transaction.objectStore(STORE);
          const all = store.getAll() as IDBRequest<Kept[]>;
          let result: ReturnType<typeof action>;
          all.onsuccess = () => {
            held = all.result;
            const drop = (id: string) => {
              dropped.push(id);
              store.delete(id);
            };
            result = act(held, action, (one) => store.put(one), drop);
          };
          transaction.oncomplete = () => done(result);
          transaction.onabort = transaction.onerror = () => failed(transaction.error);
        });
        for (const id of dropped) memory.delete(id);
        return result;
      } catch {
        opening = null;
        return act(held, action, (one) => memory.set(one.id, one), (id) => memory.delete(id));
      }
    },
  };
}

type News = { id: string; result: unknown } | { id: string; problem: [string, string] } | null;

export class Outbox {
  private readonly connection: Pick<Connection, 'command'>;
  private readonly env: Environment;
  private readonly shelf: Shelf;
  private readonly locks: Locks;
  private readonly line: Line | undefined;
  private readonly name: string;
  private readonly maxAgeMs: number;
  private readonly listeners = new Set<(entries: readonly OutboxEntry[]) => void>();
  private readonly waiters = new Map<string, { done: (result: Run) => void; failed: (problem: Problem) => void }>();
  /** Those that this tab sends or stands in the queue for. */
  private readonly queued = new Map<string, { stop: AbortController; edition: number }>();
  private shown: readonly OutboxEntry[] = [];
  private timer: unknown;
  private closed = false;

  constructor(options: OutboxOptions) {
    const { connection, maxAgeMs = GIVE_UP_MS, name = 'rejoin' } = options;
    this.connection = connection;
    this.env = { ...browserEnvironment(), ...options.environment };
    this.shelf = options.shelf ?? browserShelf(name);
    this.name = `${name}-outbox`;
    this.maxAgeMs = maxAgeMs;
    this.locks = locksOf(this.env) ?? inTurn();
    this.line = linesOf(this.env)?.(this.name);
    if (this.line) {
      this.line.onmessage = ({ data }: { data: News }) => {
        if (data !== null) this.settle(data);
        void this.look();
      };
    }
    void this.look();
  }

  get entries(): readonly OutboxEntry[] {
    return this.shown;
  }

  /** Calls back at once, then on every change. Returns the undo. */
  listen(listener: (entries: readonly OutboxEntry[]) => void): () => void {
    this.listeners.add(listener);
    listener(this.shown);
    return () => this.listeners.delete(listener);
  }

  /** Keeps a command and tries it. `result` is settled when the server has answered, as long as this page lives. */
  async add(command: Command): Promise<{ id: string; result: Promise<Run> }> {
    if (JSON.stringify(command).length > MAX_BYTES) {
      throw new Problem(0, 'too_large', 'Too large', 'This is more than can be sent at once.');
    }
    const id = this.env.uuid();
    const result = new Promise<Run>((done, failed) => this.waiters.set(id, { done, failed }));
    // Nobody need listen: it is shown as well.
    result.catch(() => {});
    const one = { id, command, at: this.env.now(), tried: false, error: null, edition: 0 };
    const room = await this.change((entries) => entries.size < MAX_ENTRIES && entries.set(id, one));
    if (room) return { id, result };
    this.waiters.delete(id);
    throw new Problem(0, 'limit', 'Too many', `${MAX_ENTRIES} commands wait already. Take some back first.`);
  }

  /** Other content under the same id, so that it acts once at most. False if it is there no more. */
  edit(id: string, command: Command): Promise<boolean> {
    return this.change((entries) => {
      const one = entries.get(id);
      if (one) entries.set(id, { ...one, command, error: null, edition: one.edition + 1 });
      return one !== undefined;
    });
  }

  /** Removes it. False if it may have arrived. */
  async takeBack(id: string): Promise<boolean> {
    const safe = await this.change((entries) => {
      const one = entries.get(id);
      entries.delete(id);
      return one !== undefined && (!one.tried || one.error !== null);
    });
    this.settle({ id, problem: ['aborted', 'It was taken back.'] });
    return safe;
  }

  /** One that was refused, or is too old, as a new command. */
  async again(id: string): Promise<void> {
    const command = await this.change((entries) => {
      const one = entries.get(id);
      entries.delete(id);
      return one?.command;
    });
    if (command) await this.add(command);
  }

  /** All of it, e.g. when somebody signs out. */
  async clear(): Promise<void> {
    await this.change((entries) => entries.clear());
  }

  /** For this page. What waits stays. */
  close(): void {
    this.closed = true;
    this.env.clearTimer(this.timer);
    for (const { stop } of this.queued.values()) stop.abort();
    this.line?.close();
  }

  private async change<T>(action: (entries: Kepts) => T): Promise<T> {
    const result = await this.shelf.change(action);
    this.line?.postMessage(null);
    await this.look();
    return result;
  }

  private isOld({ at }: Kept): boolean {
    return this.env.now() - at >= this.maxAgeMs;
  }

  /** What is there now: shown, sent, or no longer sent. */
  private async look(): Promise<void> {
    const now = this.env.now();
    const all = await this.shelf.change((entries) => {
      for (const { id, at } of [...entries.values()]) if (now - at > FORGET_MS) entries.delete(id);
      return [...entries.values()].sort((a, b) => a.at - b.at);
    });
    if (this.closed) return;
    const due = new Set<string>();
    let next = Infinity;
    for (const one of all) {
      if (one.error !== null || this.isOld(one)) continue;
      due.add(one.id);
      next = Math.min(next, one.at + this.maxAgeMs - now);
      const held = this.queued.get(one.id);
      if (held !== undefined && held.edition !== one.edition) held.stop.abort();
      if (held === undefined || held.stop.signal.aborted) void this.send(one);
    }
    for (const [id, { stop }] of this.queued) if (!due.has(id)) stop.abort();
    this.env.clearTimer(this.timer);
    // Timers take no more than 31 bits.
    if (next < Infinity) this.timer = this.env.setTimer(() => void this.look(), Math.min(next, 2 ** 31 - 1));
    this.shown = all.map((one) => ({
      id: one.id,
      command: one.command,
      at: one.at,
      tried: one.tried,
      error: one.error,
      kept: this.shelf.keeps(one.id),
      state: one.error !== null ? 'refused' : this.isOld(one) ? 'expired' : one.tried ? 'sending' : 'waiting',
    }));
    for (const listener of [...this.listeners]) listener(this.shown);
  }

  /** One tab has the lock and sends; the others stand behind it, should it go. Words to one listener go in order. */
  private async send({ id, command, edition }: Kept): Promise<void> {
    const stop = new AbortController();
    const mine = { stop, edition };
    this.queued.set(id, mine);
    const { signal } = stop;
    const of = command.op === 'message' ? (command.run ?? command.task) : id;
    const held = async () => {
      const now = await this.shelf.change((entries) => {
        const one = entries.get(id);
        if (one === undefined || one.error !== null || one.edition !== edition || this.isOld(one)) return undefined;
        entries.set(id, { ...one, tried: true });
        return one;
      });
      if (now === undefined || signal.aborted) return;
      void this.look();
      this.line?.postMessage(null);
      try {
        const result = await this.connection.command(now.command, { id, at: now.at, signal });
        this.tell({ id, result });
        await this.change((entries) => entries.delete(id));
      } catch (error) {
        const { code, message } = error as Problem;
        if (signal.aborted) return;
        this.tell({ id, problem: [code, message] });
        await this.change((entries) => {
          const one = entries.get(id);
          if (one?.edition === edition) entries.set(id, { ...one, error: { code, message } });
        });
      }
    };
    await this.locks.request(`${this.name} ${of}`, { signal }, held).catch(() => {});
    if (this.queued.get(id) === mine) this.queued.delete(id);
  }

  private tell(news: News & object): void {
    this.settle(news);
    this.line?.postMessage(news);
  }

  private settle(news: News & object): void {
    const waiter = this.waiters.get(news.id);
    this.waiters.delete(news.id);
    if ('result' in news) waiter?.done(news.result as Run);
    else waiter?.failed(new Problem(0, news.problem[0], news.problem[0], news.problem[1]));
  }
}

/** Where tabs cannot agree, each sends what it knows of: the id makes it act once. */
function inTurn(): Locks {
  const last = new Map<string, Promise<unknown>>();
  return {
    request(name, _, held) {
      const turn = (last.get(name) ?? Promise.resolve()).then(held, held);
      last.set(name, turn);
      return turn;
    },
  };
}
