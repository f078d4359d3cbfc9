// The world outside: clock, timers, chance, sockets, calls and the signs that a page woke up. Tests bring their own.

/** The part of a WebSocket that the client uses. Other ways to the server are dressed up as one. */
export interface Socket {
  readonly readyState: number;
  onopen: ((event: unknown) => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: ((event: unknown) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

/** A class like the browser's WebSocket. */
export type SocketClass = new (url: string, protocol: string) => unknown;

export const SOCKET_CONNECTING = 0;
export const SOCKET_OPEN = 1;

export type WakeUp = 'visible' | 'online' | 'pageshow' | 'resume';

export interface Environment {
  /** Milliseconds; must go on while the machine sleeps. */
  now(): number;
  setTimer(action: () => void, ms: number): unknown;
  clearTimer(timer: unknown): void;
  /** In [0, 1). */
  random(): number;
  uuid(): string;
  /** Undefined where there are no WebSockets. */
  openSocket: ((url: string, protocol: string) => Socket) | undefined;
  fetch: typeof globalThis.fetch;
  visible(): boolean;
  online(): boolean;
  /** Calls back when there is reason to doubt the socket, and when the network comes or goes. Returns the undo. */
  listen(onWake: (why: WakeUp) => void, onNetwork: () => void): () => void;
  /** How the tabs of a browser agree and talk; undefined where they cannot. */
  locks: Locks | undefined;
  line: ((name: string) => Line) | undefined;
}

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

/** A version 4 uuid. `crypto.randomUUID` exists only in secure contexts, and a page on a LAN address is not one. */
export function uuid(): string {
  // Each 0 is a random digit; the 8 keeps its upper bit and has two random ones below.
  return '00000000-0000-4000-8000-000000000000'.replace(/[08]/g, (digit) => {
    const random = crypto.getRandomValues(new Uint8Array(1))[0]!;
    return (digit === '8' ? 8 | (random & 3) : random & 15).toString(16);
  });
}

/** The world as it is in a browser, a worker or Node. */
export function browserEnvironment(socketClass?: SocketClass | null): Environment {
  const Class = socketClass === undefined ? (globalThis.WebSocket as SocketClass | undefined) : socketClass;
  return {
    now: () => Date.now(),
    setTimer: (action, ms) => setTimeout(action, ms),
    clearTimer: (timer) => clearTimeout(timer as ReturnType<typeof setTimeout>),
    random: () => Math.random(),
    uuid,
    openSocket: Class ? (url, protocol) => new Class(url, protocol) as Socket : undefined,
    fetch: (...args) => globalThis.fetch(...args),
    locks: globalThis.navigator?.locks as Locks | undefined,
    line:
      typeof BroadcastChannel === 'undefined'
        ? undefined
        : (name) => new BroadcastChannel(name) as unknown as Line,
    visible: () => typeof document === 'undefined' || document.visibilityState === 'visible',
    online: () => typeof navigator === 'undefined' || navigator.onLine !== false,
    listen(onWake, onNetwork) {
      if (typeof addEventListener === 'undefined') return () => {};
      const stop = new AbortController();
      const on = (target: EventTarget, name: string, action: (event: Event) => void) =>
        target.addEventListener(name, action, { signal: stop.signal });
      on(globalThis, 'online', () => {
        onNetwork();
        onWake('online');
      });
      on(globalThis, 'offline', onNetwork);
      if (typeof document === 'undefined') return () => stop.abort();
      // Only a page that was hidden comes back: a first `visible` must not shake a connection that is being made.
      let wasHidden = document.visibilityState === 'hidden';
      on(document, 'visibilitychange', () => {
        if (document.visibilityState === 'hidden') wasHidden = true;
        else if (wasHidden) {
          wasHidden = false;
          onWake('visible');
        }
      });
      on(globalThis, 'pageshow', (event) => {
        if ((event as PageTransitionEvent).persisted) onWake('pageshow');
      });
      on(document, 'resume', () => onWake('resume'));
      return () => stop.abort();
    },
  };
}
