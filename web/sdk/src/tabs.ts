// Who of the tabs of a browser holds the connection, and how the others reach it. A shared worker does, where one is
// given; else a lock elects a tab. Both hand out a socket, so that a tab need not know.
//
// A tab that cannot reach the one that holds the connection takes the lock from it: it may be frozen. A tab that is seen
// takes it from one that is hidden and not connected, for a browser slows the timers of hidden pages down. Nothing is
// lost by it: each tab goes on from its own position.

import type { Environment, Line, Socket } from './environment.js';
import type { ClientFrame, ServerFrame } from './frames.js';
import { Hub } from './hub.js';
import { Connection, type ConnectionOptions } from './index.js';
import type { Make, Share, Tabs } from './share.js';

/** Tabs of one version of this protocol between them understand each other. */
const NAME = 'rejoin-tabs-1';

/** Whoever holds the connection answers in no time, unless it is frozen. */
const ANSWER_MS = 2_000;

/** The connection is not taken to and fro. */
const STEAL_PAUSE_MS = 10_000;

/** What is said before there are frames: the other end is there. */
const OPEN = 'open';

/** On the line that all share: a tab that looks for the connection, or the news that it is held by another now. */
type Call = { knock: string } | { here: string };

/** One socket for all tabs of this browser. `worker` makes the shared worker that holds it, where there are such. */
export function tabs({ worker }: { worker?: () => SharedWorker } = {}): Share {
  return (url, env, make) => {
    if (worker && typeof SharedWorker !== 'undefined') return reached(url, worker);
    return env.locks && env.line ? elected(url, env, make) : null;
  };
}

/** A socket to whatever holds the connection. */
function tabSocket() {
  let out: ((frame: ClientFrame) => void) | undefined;
  let undo = () => {};
  const socket = {
    readyState: 0,
    onopen: null,
    onmessage: null,
    onclose: null,
    onerror: null,
    send: (text) => out?.(JSON.parse(text) as ClientFrame),
    close() {
      if (socket.readyState > 1) return;
      out?.({ type: 'bye' });
      socket.readyState = 3;
      undo();
    },
  } as { -readonly [name in keyof Socket]: Socket[name] };
  return {
    socket,
    /** The other end is there: what takes what this tab says, and what undoes it. */
    attach(say: (frame: ClientFrame) => void, end: () => void) {
      if (socket.readyState > 0) return end();
      out = say;
      undo = end;
      socket.readyState = 1;
      socket.onopen?.({});
    },
    receive(frame: ServerFrame) {
      if (socket.readyState === 1) socket.onmessage?.({ data: frame });
    },
    /** The other end is gone. */
    lose() {
      const { onclose } = socket;
      if (socket.readyState > 1) return;
      socket.close();
      onclose?.({ code: 1006, reason: '' });
    },
  };
}

type TabSocket = ReturnType<typeof tabSocket>;

// By a worker.

function reached(url: string, worker: () => SharedWorker): Tabs {
  let mine: TabSocket | undefined;
  const close = () => mine?.socket.close();
  return {
    holds: () => false,
    close,
    open() {
      const { socket, attach, receive, lose } = (mine = tabSocket());
      const made = worker();
      const { port } = made;
      made.onerror = lose;
      port.onmessage = ({ data }: { data: ServerFrame | typeof OPEN }) => {
        if (data === OPEN)
          attach(
            (frame) => port.postMessage(frame),
            () => port.close(),
          );
        else receive(data);
      };
      port.postMessage(url);
      // A port tells nobody when its page is gone.
      globalThis.addEventListener?.('pagehide', close);
      return socket;
    },
  };
}

/**
 * The other side of it, and all that the script of such a worker has to do. To be called at once: a tab that connects
 * before is not heard.
 */
export function serveTabs(options: Omit<ConnectionOptions, 'share' | 'token'> = {}): void {
  const hubs = new Map<string, Hub>();
  const make = (url: string) => (more: ConnectionOptions) =>
    new Connection({ ...options, url, environment: { ...options.environment, ...more.environment } });
  (globalThis as unknown as { onconnect: unknown }).onconnect = ({
    ports: [port],
  }: {
    ports: MessagePort[];
  }) => {
    port!.onmessage = ({ data: url }: { data: string }) => {
      const hub = hubs.get(url) ?? new Hub(make(url));
      hubs.set(url, hub);
      const guest = hub.enter((frame) => port!.postMessage(frame));
      port!.onmessage = ({ data }: { data: ClientFrame }) => guest.receive(data);
      port!.postMessage(OPEN);
    };
  };
}

// By election.

function elected(url: string, env: Environment, make: Make): Tabs {
  const name = `${NAME} ${url}`;
  const line = env.line!;
  let common: Line | undefined;
  let mine: TabSocket | undefined;
  let hub: Hub | undefined;
  let letGo = () => {};
  let queue: AbortController | undefined;
  let patience: unknown;
  let stolenAt = -Infinity;
  let unload: AbortController | undefined;

  function close(): void {
    unload?.abort();
    env.clearTimer(patience);
    mine?.socket.close();
    queue?.abort();
    queue = undefined;
    resign();
    common?.close();
    common = undefined;
  }

  function open(): Socket {
    const { socket } = (mine = tabSocket());
    if (common === undefined) join();
    // Not before its owner has had time to listen.
    queueMicrotask(reach);
    return socket;
  }

  function join(): void {
    common = line(name);
    common.onmessage = ({ data }: { data: Call }) => {
      if ('knock' in data) serve(data.knock);
      else if (!hub) moved();
    };
    stand();
    if (typeof document === 'undefined') return;
    unload = new AbortController();
    addEventListener('pagehide', close, unload);
    document.addEventListener('freeze', close, unload);
  }

  /** Stands in the queue for the connection, or takes it from whoever has it. */
  function stand(steal = false): void {
    queue?.abort();
    const place = (queue = new AbortController());
    const held = () =>
      new Promise<void>((done) => {
        if (queue !== place) return done();
        letGo = done;
        hub = new Hub(
          (options) => make({ ...options, share: undefined }),
          () => !env.visible(),
        );
        common?.postMessage({ here: hub.id } satisfies Call);
        moved();
      });
    env.locks!.request(name, steal ? { steal } : { signal: place.signal }, held).catch(() => {
      // Taken by another, or no longer wanted.
      if (queue !== place) return;
      resign();
      stand();
      mine?.lose();
    });
  }

  function resign(): void {
    letGo();
    hub?.close();
    hub = undefined;
  }

  /** Another holds the connection now: what was open leads nowhere. */
  function moved(): void {
    if (mine?.socket.readyState === 1) mine.lose();
    else reach();
  }

  function reach(): void {
    if (mine?.socket.readyState !== 0) return;
    const { socket, attach, receive } = mine;
    env.clearTimer(patience);
    if (hub) {
      const guest = hub.enter((frame) => queueMicrotask(() => receive(frame)));
      attach(
        (frame) => guest.receive(frame),
        () => guest.leave(),
      );
      return;
    }
    const own = `${name} ${env.uuid()}`;
    const wire = line(own);
    wire.onmessage = ({ data }: { data: ServerFrame | typeof OPEN }) => {
      if (data === OPEN) {
        env.clearTimer(patience);
        attach(
          (frame) => wire.postMessage(frame),
          () => wire.close(),
        );
        return;
      }
      receive(data);
      const idle = data.type === 'hub' && data.hidden && data.status.state !== 'connected';
      if (!idle || !env.visible() || env.now() - stolenAt < STEAL_PAUSE_MS) return;
      stolenAt = env.now();
      stand(true);
    };
    common?.postMessage({ knock: own } satisfies Call);
    patience = env.setTimer(() => {
      if (socket.readyState > 0) return;
      wire.close();
      stand(true);
    }, ANSWER_MS);
  }

  function serve(to: string): void {
    if (!hub) return;
    const wire = line(to);
    const guest = hub.enter(
      (frame) => wire.postMessage(frame),
      () => wire.close(),
    );
    wire.onmessage = ({ data }: { data: ClientFrame }) => guest.receive(data);
    wire.postMessage(OPEN);
  }

  return { holds: () => hub !== undefined, open, close };
}
