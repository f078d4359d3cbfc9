// The world outside: clock, timers, chance, sockets, calls and the signs that a page woke up. Tests bring their own.

import type { Line, Locks } from './tabs.js';

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
  openSocket(url: string, protocol: string): Socket;
  /** Whether there are WebSockets at all. */
  sockets: boolean;
  fetch: typeof globalThis.fetch;
  visible(): boolean;
  online(): boolean;
  /** Calls back when there is reason to doubt the socket, and when the network comes or goes. Returns the undo. */
  listen(onWake: (why: WakeUp) => void, onNetwork: () => void): () => void;
  /** How tabs agree on who holds the connection, and talk to each other; the browser's own, if not given. */
  locks?: Locks;
  line?: (name: string) => Line;
}

/** A version 4 uuid. `crypto.randomUUID` exists only in secure contexts, and a page on a LAN address is not one. */
export function uuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
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
    sockets: Class != null,
    openSocket: (url, protocol) => new Class!(url, protocol) as Socket,
    // Looked up at each call: called as a method of anything else, the browser's own refuses.
    fetch: (...args) => globalThis.fetch(...args),
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
