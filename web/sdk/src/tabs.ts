// Who of the tabs of a browser holds the connection, and how the others reach it. A shared worker does, where one is
// given; else a lock elects a tab. Both hand out a socket, so that a tab need not know.
//
// A tab that cannot reach the one that holds the connection takes the lock from it: it may be frozen. A tab that is seen
// takes it from one that is hidden and not connected, for a browser slows the timers of hidden pages down. Nothing is
// lost by it: each tab goes on from its own position.

import type { ConnectionOptions } from './connection.js';
import { browserEnvironment, type Environment, type Socket } from './environment.js';
import type { ClientFrame, ServerFrame } from './frames.js';
import { Hub, type Guest } from './hub.js';

export interface Tabs {
  /** Whether the connection is held here. */
  readonly holds: boolean;
  open(): Socket;
  close(): void;
}

/** Tabs of one version of this protocol between them understand each other. */
const NAME = 'rejoin-tabs-1';

/** Whoever holds the connection answers in no time, unless it is frozen. */
const ANSWER_MS = 2_000;

/** The connection is not taken to and fro. */
const STEAL_PAUSE_MS = 10_000;

/** The part of the Web Locks that is used; `request` settles when the lock is let go, or taken by another. */
export interface Locks {
  request(
    name: string,
    options: { steal?: boolean; signal?: AbortSignal },
    held: () => Promise<void>,
  ): Promise<unknown>;
}

/** The part of a BroadcastChannel that is used. */
export interface Line {
  onmessage: ((event: { data: never }) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

export function tabsOf(
  url: string,
  { worker }: { worker?: () => SharedWorker },
  options: ConnectionOptions,
): Tabs | null {
  if (worker !== undefined && typeof SharedWorker !== 'undefined') return new WorkerTabs(url, worker);
  const env = { ...browserEnvironment(), ...options.environment };
  const locks = locksOf(env);
  const line = linesOf(env);
  return locks && line ? new ElectedTabs({ ...options, url }, env, locks, line) : null;
}

export function locksOf({ locks }: Environment): Locks | undefined {
  return locks ?? (globalThis.navigator as { locks?: Locks } | undefined)?.locks;
}

export function linesOf({ line }: Environment): ((name: string) => Line) | undefined {
  if (line !== undefined || typeof BroadcastChannel === 'undefined') return line;
  return (name) => new BroadcastChannel(name) as unknown as Line;
}

/** A socket to whatever holds the connection: `out` takes what this tab says. */
class TabSocket implements Socket {
  readyState = 0;
  onopen: Socket['onopen'] = null;
  onmessage: Socket['onmessage'] = null;
  onclose: Socket['onclose'] = null;
  onerror: Socket['onerror'] = null;
  private out: ((frame: ClientFrame) => void) | null = null;
  private undo: () => void = () => {};

  /** The other end is there. */
  attach(out: (frame: ClientFrame) => void, undo: () => void): void {
    if (this.readyState !== 0) {
      undo();
      return;
    }
    this.out = out;
    this.undo = undo;
    this.readyState = 1;
    this.onopen?.({});
  }

  send(text: string): void {
    this.out?.(JSON.parse(text) as ClientFrame);
  }

  receive(frame: ServerFrame): void {
    if (this.readyState === 1) this.onmessage?.({ data: frame });
  }

  /** The other end is gone. */
  lose(): void {
    if (this.readyState > 1) return;
    const { onclose } = this;
    this.close();
    onclose?.({ code: 1006, reason: '' });
  }

  close(): void {
    if (this.readyState > 1) return;
    this.out?.({ type: 'bye' });
    this.readyState = 3;
    this.undo();
  }
}

class WorkerTabs implements Tabs {
  readonly holds = false;
  private readonly url: string;
  private readonly make: () => SharedWorker;
  private socket: TabSocket | null = null;
  private readonly leaving = () => this.close();

  constructor(url: string, make: () => SharedWorker) {
    this.url = url;
    this.make = make;
  }

  open(): Socket {
    const socket = new TabSocket();
    this.socket = socket;
    const worker = this.make();
    const { port } = worker;
    worker.onerror = () => socket.lose();
    port.onmessage = ({ data }: { data: ServerFrame | 'open' }) => {
      if (data === 'open') socket.attach((frame) => port.postMessage(frame), () => port.close());
      else socket.receive(data);
    };
    port.postMessage({ url: this.url });
    // A port tells nobody when its page is gone.
    addEventListener('pagehide', this.leaving);
    return socket;
  }

  close(): void {
    removeEventListener('pagehide', this.leaving);
    this.socket?.close();
  }
}

/** The script of a shared worker that holds the connection for all tabs: one line that calls this. */
export function serveTabs(options: Omit<ConnectionOptions, 'share' | 'token'> = {}): void {
  const hubs = new Map<string, Hub>();
  (globalThis as unknown as { onconnect: unknown }).onconnect = ({ ports: [port] }: { ports: MessagePort[] }) => {
    if (port === undefined) return;
    let guest: Guest | null = null;
    port.onmessage = ({ data }: { data: ClientFrame | { url: string } }) => {
      if ('type' in data) {
        guest?.receive(data);
        return;
      }
      const { url } = data;
      const hub = hubs.get(url) ?? new Hub({ ...options, url });
      hubs.set(url, hub);
      guest = hub.enter((frame) => port.postMessage(frame));
      port.postMessage('open');
    };
  };
}

/** On the line that all share: a tab that looks for the connection, or the news that it is held by another now. */
type Call = { knock: string } | { here: string };

class ElectedTabs implements Tabs {
  private readonly options: ConnectionOptions;
  private readonly env: Environment;
  private readonly locks: Locks;
  private readonly line: (name: string) => Line;
  private readonly name: string;
  private common: Line | null = null;
  private hub: Hub | null = null;
  /** Lines to the tabs that are served from here. */
  private readonly served = new Map<Guest, Line>();
  private letGo: (() => void) | null = null;
  private queue: AbortController | null = null;
  private socket: TabSocket | null = null;
  private patience: unknown = null;
  private stolenAt = -Infinity;
  private stopListening: (() => void) | null = null;

  constructor(options: ConnectionOptions, env: Environment, locks: Locks, line: (name: string) => Line) {
    this.options = options;
    this.env = env;
    this.locks = locks;
    this.line = line;
    this.name = `${NAME} ${String(options.url)}`;
  }

  get holds(): boolean {
    return this.hub !== null;
  }

  open(): Socket {
    const socket = new TabSocket();
    this.socket = socket;
    this.join();
    // Not before its owner has had time to listen.
    queueMicrotask(() => this.reach());
    return socket;
  }

  close(): void {
    this.stopListening?.();
    this.stopListening = null;
    this.env.clearTimer(this.patience);
    this.socket?.close();
    this.socket = null;
    this.resign();
    this.queue?.abort();
    this.queue = null;
    this.common?.close();
    this.common = null;
  }

  private join(): void {
    if (this.common !== null) return;
    this.common = this.line(this.name);
    this.common.onmessage = ({ data }: { data: Call }) => {
      if ('knock' in data) this.serve(data.knock);
      else if (this.hub === null) this.moved();
    };
    this.candidate({});
    if (typeof document === 'undefined') return;
    const stop = new AbortController();
    const leaving = () => this.close();
    addEventListener('pagehide', leaving, { signal: stop.signal });
    document.addEventListener('freeze', leaving, { signal: stop.signal });
    this.stopListening = () => stop.abort();
  }

  /** Stands in the queue for the connection, or takes it from whoever has it. */
  private candidate(options: { steal?: boolean }): void {
    this.queue?.abort();
    const queue = new AbortController();
    this.queue = queue;
    const held = () =>
      new Promise<void>((letGo) => {
        if (this.queue !== queue || this.common === null) letGo();
        else this.lead(letGo);
      });
    this.locks.request(this.name, options.steal ? options : { signal: queue.signal }, held).catch(() => {
      // Taken by another, or no longer wanted.
      if (this.queue !== queue) return;
      this.resign();
      this.candidate({});
      this.socket?.lose();
    });
  }

  private lead(letGo: () => void): void {
    this.letGo = letGo;
    this.hub = new Hub(this.options, () => !this.env.visible());
    this.common?.postMessage({ here: this.hub.id } satisfies Call);
    // What was open leads to one that holds it no more.
    if (this.socket?.readyState === 1) this.socket.lose();
    else this.reach();
  }

  private resign(): void {
    const { hub } = this;
    this.hub = null;
    this.letGo?.();
    this.letGo = null;
    for (const line of this.served.values()) line.close();
    this.served.clear();
    hub?.close();
  }

  /** Another tab holds the connection now. */
  private moved(): void {
    if (this.socket?.readyState === 1) this.socket.lose();
    else this.reach();
  }

  private reach(): void {
    const { socket, hub } = this;
    if (socket === null || socket.readyState !== 0) return;
    this.env.clearTimer(this.patience);
    if (hub !== null) {
      const guest = hub.enter((frame) => queueMicrotask(() => socket.receive(frame)));
      socket.attach((frame) => guest.receive(frame), () => guest.leave());
      return;
    }
    const name = `${this.name} ${this.env.uuid()}`;
    const line = this.line(name);
    line.onmessage = ({ data }: { data: ServerFrame | 'open' }) => {
      if (data === 'open') {
        this.env.clearTimer(this.patience);
        socket.attach((frame) => line.postMessage(frame), () => line.close());
      } else {
        socket.receive(data);
        if (data.type === 'hub' && data.hidden && data.status.state !== 'connected') this.takeFromHidden();
      }
    };
    this.common?.postMessage({ knock: name } satisfies Call);
    this.patience = this.env.setTimer(() => {
      if (socket.readyState !== 0) return;
      line.close();
      this.candidate({ steal: true });
    }, ANSWER_MS);
  }

  private takeFromHidden(): void {
    const now = this.env.now();
    if (!this.env.visible() || now - this.stolenAt < STEAL_PAUSE_MS) return;
    this.stolenAt = now;
    this.candidate({ steal: true });
  }

  private serve(name: string): void {
    const { hub } = this;
    if (hub === null) return;
    const line = this.line(name);
    const guest = hub.enter((frame) => line.postMessage(frame));
    this.served.set(guest, line);
    line.onmessage = ({ data }: { data: ClientFrame }) => {
      guest.receive(data);
      if (data.type !== 'bye') return;
      this.served.delete(guest);
      line.close();
    };
    line.postMessage('open');
  }
}
