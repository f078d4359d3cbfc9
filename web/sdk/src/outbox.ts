// Commands that must not be forgotten: kept by the browser from before they are tried until the server has answered,
// over reloads and in sight of all tabs, of which one sends. What is too old is shown and not sent. It holds no
// credential and knows no socket.

import type { Environment, Line, Locks } from './environment.js';
import { GIVE_UP_MS, Problem, browserEnvironment, type Command, type Connection, type Run } from './index.js';

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
  let opening: Promise<IDBDatabase> | undefined;
  const open = () =>
    (opening ??= new Promise((done, failed) => {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
      request.onsuccess = () => {
        // Another version of the page must not wait for this one.
        request.result.onversionchange = () => request.result.close();
        done(request.result);
      };
      request.onerror = request.onblocked = failed;
    }));

  /** Acts on what there is and hands each difference on. */
  function act<T>(
    held: Kept[],
    action: (entries: Kepts) => T,
    put: (one: Kept) => void,
    drop: (id: string) => void,
  ): T {
    const before: Kepts = new Map();
    for (const one of [...held, ...memory.values()]) before.set(one.id, one);
    const entries = new Map(before);
    const result = action(entries);
    for (const [id, one] of entries) if (before.get(id) !== one) put(one);
    for (const id of before.keys()) if (!entries.has(id)) drop(id);
    return result;
  }

  return {
    keeps: (id) => !memory.has(id),
    async change<T>(action: (entries: Kepts) => T): Promise<T> {
      let held: Kept[] = [];
      const written: string[] = [];
      try {
        const transaction = (await open()).transaction(STORE, 'readwrite');
        return await new Promise<T>((done, failed) => {
          const store = transaction.objectStore(STORE);
          const all = store.getAll() as IDBRequest<Kept[]>;
          let result: T;
          all.onsuccess = () => {
            held = all.result;
            const put = (one: Kept) => void written.push(store.put(one) && one.id);
            const drop = (id: string) => void written.push(store.delete(id) && id);
            try {
              result = act(held, action, put, drop);
            } catch (error) {
              failed(error);
            }
          };
          transaction.oncomplete = () => {
            for (const id of written) memory.delete(id);
            done(result);
          };
          transaction.onabort = failed;
        });
      } catch {
        opening = undefined;
        const put = (one: Kept) => void memory.set(one.id, one);
        return act(held, action, put, (id) => memory.delete(id));
      }
    },
  };
}

interface Waiter {
  done(result: Run | null): void;
  failed(problem: Problem): void;
}

export class Outbox {
  readonly #connection: Pick<Connection, 'command'>;
  readonly #env: Environment;
  readonly #shelf: Shelf;
  readonly #locks: Locks;
  readonly #line: Line | undefined;
  readonly #name: string;
  readonly #maxAgeMs: number;
  readonly #listeners = new Set<(entries: readonly OutboxEntry[]) => void>();
  readonly #waiters = new Map<string, Waiter>();
  /** Those that this tab sends or stands in the queue for. */
  readonly #queued = new Map<string, { stop: AbortController; edition: number }>();
  #shown: readonly OutboxEntry[] = [];
  #timer: unknown;
  #closed = false;

  constructor(options: OutboxOptions) {
    const { connection, maxAgeMs = GIVE_UP_MS, name = 'rejoin' } = options;
    this.#connection = connection;
    this.#env = { ...browserEnvironment(), ...options.environment };
    this.#shelf = options.shelf ?? browserShelf(name);
    this.#name = `${name}-outbox`;
    this.#maxAgeMs = maxAgeMs;
    this.#locks = this.#env.locks ?? NO_LOCKS;
    this.#line = this.#env.line?.(this.#name);
    if (this.#line) this.#line.onmessage = () => void this.#look();
    void this.#look();
  }

  get entries(): readonly OutboxEntry[] {
    return this.#shown;
  }

  /** Calls back at once, then on every change. Returns the undo. */
  listen(listener: (entries: readonly OutboxEntry[]) => void): () => void {
    this.#listeners.add(listener);
    listener(this.#shown);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Keeps a command and tries it. `result` is settled when the server has answered; with null if it was taken back, or
   * another tab has the answer.
   */
  async add(command: Command): Promise<{ id: string; result: Promise<Run | null> }> {
    if (JSON.stringify(command).length > MAX_BYTES) {
      throw new Problem(0, 'too_large', 'This is more than can be sent at once.');
    }
    const id = this.#env.uuid();
    let waiter: Waiter;
    const result = new Promise<Run | null>((done, failed) => (waiter = { done, failed }));
    // Nobody need listen: it is shown as well.
    result.catch(() => {});
    const one = { id, command, at: this.#env.now(), tried: false, error: null, edition: 0 };
    const room = await this.#change((entries) => {
      if (entries.size >= MAX_ENTRIES) return false;
      this.#waiters.set(id, waiter!);
      return entries.set(id, one);
    });
    if (room) return { id, result };
    throw new Problem(0, 'limit', `${MAX_ENTRIES} commands wait already. Take some back first.`);
  }

  /** Other content under the same id, so that it acts once at most. False if it is there no more. */
  edit(id: string, command: Command): Promise<boolean> {
    return this.#change((entries) => {
      const one = entries.get(id);
      if (one) entries.set(id, { ...one, command, error: null, edition: one.edition + 1 });
      return one !== undefined;
    });
  }

  /** Removes it. False if it may have arrived. */
  takeBack(id: string): Promise<boolean> {
    return this.#change((entries) => {
      const one = entries.get(id);
      entries.delete(id);
      return one !== undefined && (!one.tried || one.error !== null);
    });
  }

  /** One that was refused, or is too old, as a new command. */
  async again(id: string): Promise<void> {
    const command = await this.#change((entries) => {
      const one = entries.get(id);
      entries.delete(id);
      return one?.command;
    });
    if (command) await this.add(command);
  }

  /** All of it, e.g. when somebody signs out. */
  async clear(): Promise<void> {
    await this.#change((entries) => entries.clear());
  }

  /** For this page. What waits stays. */
  close(): void {
    this.#closed = true;
    this.#env.clearTimer(this.#timer);
    for (const { stop } of this.#queued.values()) stop.abort();
    this.#line?.close();
  }

  async #change<T>(action: (entries: Kepts) => T): Promise<T> {
    const result = await this.#shelf.change(action);
    await this.#look();
    this.#line?.postMessage(null);
    return result;
  }

  #isOld({ at }: Kept): boolean {
    return this.#env.now() - at >= this.#maxAgeMs;
  }

  /** What is there now: shown, sent, or no longer sent. */
  async #look(): Promise<void> {
    const now = this.#env.now();
    const gone: string[] = [];
    const all = await this.#shelf.change((entries) => {
      // Here, where nothing gets between: one that is being added has a waiter only once it is kept.
      gone.push(...[...this.#waiters.keys()].filter((id) => !entries.has(id)));
      for (const { id, at } of [...entries.values()]) if (now - at > FORGET_MS) entries.delete(id);
      return [...entries.values()].sort((a, b) => a.at - b.at);
    });
    for (const id of gone) {
      this.#waiters.get(id)?.done(null);
      this.#waiters.delete(id);
    }
    if (this.#closed) return;
    const due = new Set<string>();
    let next = Infinity;
    for (const one of all) {
      if (one.error !== null || this.#isOld(one)) continue;
      due.add(one.id);
      next = Math.min(next, one.at + this.#maxAgeMs - now);
      const held = this.#queued.get(one.id);
      if (held !== undefined && held.edition !== one.edition) held.stop.abort();
      if (held === undefined || held.stop.signal.aborted) void this.#send(one);
    }
    for (const [id, { stop }] of this.#queued) if (!due.has(id)) stop.abort();
    this.#env.clearTimer(this.#timer);
    // Timers take no more than 31 bits.
    if (next < Infinity)
      this.#timer = this.#env.setTimer(() => void this.#look(), Math.min(next, 2 ** 31 - 1));
    this.#shown = all.map((one) => ({
      ...one,
      kept: this.#shelf.keeps(one.id),
      state:
        one.error !== null ? 'refused' : this.#isOld(one) ? 'expired' : one.tried ? 'sending' : 'waiting',
    }));
    for (const listener of [...this.#listeners]) listener(this.#shown);
  }

  /** One tab has the lock and sends; the others stand behind it, should it go. Words to one listener go in order. */
  async #send({ id, command, edition }: Kept): Promise<void> {
    const stop = new AbortController();
    const mine = { stop, edition };
    this.#queued.set(id, mine);
    const { signal } = stop;
    const of = command.op === 'message' ? (command.run ?? command.task) : id;
    const held = async () => {
      const now = await this.#shelf.change((entries) => {
        const one = entries.get(id);
        if (one === undefined || one.error !== null || one.edition !== edition || this.#isOld(one))
          return undefined;
        entries.set(id, { ...one, tried: true });
        return one;
      });
      if (now === undefined || signal.aborted) return;
      void this.#look();
      this.#line?.postMessage(null);
      try {
        const result = await this.#connection.command(now.command, { id, at: now.at, signal });
        this.#waiters.get(id)?.done(result);
        await this.#change((entries) => entries.delete(id));
      } catch (error) {
        const { code, message } = error as Problem;
        if (signal.aborted) return;
        this.#waiters.get(id)?.failed(error as Problem);
        await this.#change((entries) => {
          const one = entries.get(id);
          if (one?.edition === edition) entries.set(id, { ...one, error: { code, message } });
        });
      }
    };
    await this.#locks.request(`${this.#name} ${of}`, { signal }, held).catch(() => {});
    if (this.#queued.get(id) === mine) this.#queued.delete(id);
  }
}

/** Where tabs cannot agree, each sends what it knows of: the id makes it act once. */
const NO_LOCKS: Locks = { request: (_name, _options, held) => held() };
