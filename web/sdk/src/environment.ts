// The world outside: clock, timers, chance, sockets and the signs that a page woke up. Tests bring their own.

/** The part of a WebSocket that the client uses. */
export interface Socket {
  readonly readyState: number;
  onopen: ((event: unknown) => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  onerror: ((event: unknown) => void) | null;
  send(text: string): void;
  close(code?: number, reason?: string): void;
}

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
  visible(): boolean;
  online(): boolean;
  /** Calls back when there is reason to doubt the socket, and when the network comes or goes. Returns the undo. */
  listen(onWake: (why: WakeUp) => void, onNetwork: () => void): () => void;
}

/** A version 4 uuid. `crypto.randomUUID` exists only in secure contexts, and a page on a LAN address is not one. */
function uuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

export function browserEnvironment(): Environment {
  return {
    now: () => Date.now(),
    setTimer: (action, ms) => setTimeout(action, ms),
    clearTimer: (timer) => clearTimeout(timer as ReturnType<typeof setTimeout>),
    random: () => Math.random(),
    uuid,
    openSocket: (url, protocol) => new WebSocket(url, protocol) as unknown as Socket,
    visible: () => typeof document === 'undefined' || document.visibilityState === 'visible',
    online: () => typeof navigator === 'undefined' || navigator.onLine !== false,
    listen(onWake, onNetwork) {
      if (typeof window === 'undefined') return () => {};
      const stop = new AbortController();
      const { signal } = stop;
      // Only a page that was hidden comes back: a first `visible` must not shake a connection that is being made.
      let wasHidden = document.visibilityState === 'hidden';
      document.addEventListener(
        'visibilitychange',
        () => {
          if (document.visibilityState === 'hidden') wasHidden = true;
          else if (wasHidden) {
            wasHidden = false;
            onWake('visible');
          }
        },
        { signal },
      );
      window.addEventListener(
        'online',
        () => {
          onNetwork();
          onWake('online');
        },
        { signal },
      );
      window.addEventListener('offline', () => onNetwork(), { signal });
      window.addEventListener(
        'pageshow',
        (event) => {
          if (event.persisted) onWake('pageshow');
        },
        { signal },
      );
      document.addEventListener('resume', () => onWake('resume'), { signal });
      return () => stop.abort();
    },
  };
}
