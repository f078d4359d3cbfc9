// The heart: one socket at a time, and every decision about when to open the next. Subscriptions outlive sockets; each
// new socket gets one `hello` that takes all of them up again, so that there is one path for the first connect and for
// every other.

import { MAX_ATTEMPTS, delayBefore, probeDelay } from './backoff.js';
import { afterClose } from './closing.js';
import { SOCKET_CONNECTING, SOCKET_OPEN, browserEnvironment } from './environment.js';
import type { Environment, Socket, WakeUp } from './environment.js';
import { parseFrame } from './frames.js';
import type { ClientFrame, Cursor, Heartbeat, Notice, ServerFrame, TasksFrame, Welcome } from './frames.js';
import { Subscription, type SubscriptionHandler, type Verdict } from './subscription.js';

export type ConnectionState = 'disconnected' | 'connecting' | 'connected' | 'reconnecting' | 'failed';

/** Why a connection stays down until a person does something. */
export type Blocked = 'sign_in' | 'expired' | 'reload' | 'refused' | 'exhausted';

export interface ConnectionStatus {
  readonly state: ConnectionState;
  readonly blocked: Blocked | null;
  /** Tries since the last confirmed connection. */
  readonly attempt: number;
  readonly maxAttempts: number;
  /** When the next try is due, in milliseconds of the environment's clock; null while one is under way. */
  readonly retryAt: number | null;
  /** Whether the browser says that there is a network. It may be wrong, so nothing but words depends on it. */
  readonly online: boolean;
  /** Milliseconds there and back, null until measured. */
  readonly roundTripMs: number | null;
  readonly lastSeenAt: number | null;
  readonly everConnected: boolean;
  /** What the server said when it closed: draining, too slow ... */
  readonly closedWith: string | null;
  readonly server: Welcome['server'] | null;
}

export interface ConnectionHandlers {
  status?(status: ConnectionStatus): void;
  tasks?(frame: TasksFrame): void;
  notice?(notice: Notice): void;
}

export interface ConnectionOptions {
  url: string;
  /** Ask for the list of tasks, and be told of its changes. */
  tasks?: boolean;
  environment?: Environment;
}

/**
 * Either side declares the other dead after this long without a frame: a browser cannot see WebSocket pings. It is one
 * heartbeat and three quarters; a welcome that names other numbers is believed.
 */
export const LIFE_MS = 35_000;
const LIFE_PER_HEARTBEAT = 1.75;

/** From opening a socket to its `welcome`; the server gives a `hello` as long. */
export const WELCOME_DEADLINE_MS = 10_000;

/** A page that woke up waits this long for a sign of life. */
export const PROBE_DEADLINE_MS = 3_000;

/** A subscription that keeps going wrong is taken up again at most this often. */
const RESUBSCRIBE_PAUSE_MS = 1_000;

/** After an error that may pass: the server asked not to be hurried. */
const RETRYABLE_PAUSE_MS = 5_000;

const PROTOCOL = 'rejoin.v1';

export class Connection {
  readonly url: string;
  /** Made per page load and kept in memory only: a copied tab is another client. */
  readonly client: string;

  private readonly env: Environment;
  private readonly wantsTasks: boolean;
  private readonly handlers = new Set<ConnectionHandlers>();
  private readonly subscriptions = new Set<Subscription>();
  private readonly resubscribedAt = new Map<Subscription, number>();

  private current: ConnectionStatus;
  private socket: Socket | null = null;
  private welcomed = false;
  /** Grows with every socket of this page load; the server closes the older of two. */
  private attempts = 0;
  /** Tries since the last `welcome`. Nothing but a `welcome`, a wake-up or a person's Retry sets it back. */
  private tries = 0;
  private nextSub = 1;
  /** The server asked not to be called before. */
  private notBefore = 0;
  private lifeMs = LIFE_MS;
  private boot: string | null = null;
  private rev: number | null = null;

  private retryTimer: unknown = null;
  private lifeTimer: unknown = null;
  private welcomeTimer: unknown = null;
  private probeTimer: unknown = null;
  private readonly pauseTimers = new Set<unknown>();
  private askedAt: number | null = null;
  private stopListening: (() => void) | null = null;

  constructor(options: ConnectionOptions) {
    this.env = options.environment ?? browserEnvironment();
    this.url = options.url;
    this.wantsTasks = options.tasks ?? false;
    this.client = this.env.uuid();
    this.current = {
      state: 'disconnected',
      blocked: null,
      attempt: 0,
      maxAttempts: MAX_ATTEMPTS,
      retryAt: null,
      online: this.env.online(),
      roundTripMs: null,
      lastSeenAt: null,
      everConnected: false,
      closedWith: null,
      server: null,
    };
  }

  get status(): ConnectionStatus {
    return this.current;
  }

  /** Calls back at once with the status, then on every change. Returns the undo. */
  listen(handlers: ConnectionHandlers): () => void {
    this.handlers.add(handlers);
    handlers.status?.(this.current);
    return () => this.handlers.delete(handlers);
  }

  start(): void {
    if (this.stopListening !== null) return;
    this.stopListening = this.env.listen(
      (why) => this.wake(why),
      () => this.update({ online: this.env.online() }),
    );
    this.open();
  }

  /** Closes for good, e.g. after signing out. `start` begins anew; subscriptions stay. */
  stop(): void {
    this.stopListening?.();
    this.stopListening = null;
    this.dropSocket();
    this.clearRetry();
    this.update({ state: 'disconnected', blocked: null, retryAt: null, roundTripMs: null });
  }

  /** A person asks for it: at once, and the schedule starts again. */
  retry(): void {
    if (this.stopListening === null) {
      this.start();
      return;
    }
    if (this.socketIsAlive()) return;
    this.tries = 0;
    this.notBefore = 0;
    this.open();
  }

  /** Watches a task from a place in its log on; without one, from its beginning. */
  watch(task: string, handler: SubscriptionHandler, from?: Cursor): Subscription {
    const subscription = new Subscription(task, handler, from);
    this.subscriptions.add(subscription);
    if (this.welcomed) this.subscribe(subscription);
    return subscription;
  }

  unwatch(subscription: Subscription): void {
    if (!this.subscriptions.delete(subscription)) return;
    this.resubscribedAt.delete(subscription);
    if (this.welcomed && subscription.sub > 0 && subscription.state !== 'ended') {
      this.send({ type: 'unsubscribe', sub: subscription.sub });
    }
    subscription.state = 'ended';
  }

  /** Asks for the whole list of tasks. */
  askForTasks(): void {
    if (this.welcomed) this.send({ type: 'tasks' });
  }

  // Opening, closing, coming back.

  /** CLOSING and CLOSED are dead. CONNECTING is not: it is no reason for a second socket. */
  private socketIsAlive(): boolean {
    const state = this.socket?.readyState;
    return state === SOCKET_OPEN || state === SOCKET_CONNECTING;
  }

  private open(): void {
    this.clearRetry();
    this.dropSocket();
    this.tries += 1;
    this.attempts += 1;
    const first = !this.current.everConnected && this.current.state !== 'failed' && this.tries === 1;
    const failed = this.tries > MAX_ATTEMPTS;
    this.update({
      state: failed ? 'failed' : first ? 'connecting' : 'reconnecting',
      blocked: failed ? 'exhausted' : null,
      attempt: Math.min(this.tries, MAX_ATTEMPTS),
      retryAt: null,
    });
    let socket: Socket;
    try {
      socket = this.env.openSocket(this.url, PROTOCOL);
    } catch {
      this.comeBack(0, null);
      return;
    }
    this.socket = socket;
    socket.onopen = () => {
      if (socket === this.socket) this.hello(socket);
    };
    socket.onmessage = (event) => {
      if (socket === this.socket) this.receive(event.data);
    };
    socket.onclose = (event) => {
      // An older socket that closes concerns nobody.
      if (socket === this.socket) this.closed(event.code, event.reason);
    };
    // An error is always followed by a close, which says more.
    socket.onerror = null;
    this.welcomeTimer = this.env.setTimer(() => this.declareDead(), WELCOME_DEADLINE_MS);
  }

  private hello(socket: Socket): void {
    const subscribe = [];
    for (const subscription of this.subscriptions) {
      if (subscription.state !== 'ended') subscribe.push(subscription.entry(this.nextSub++));
    }
    this.askedAt = this.env.now();
    const frame: ClientFrame = {
      type: 'hello',
      protocol: 1,
      client: this.client,
      attempt: this.attempts,
      tasks: this.wantsTasks,
      subscribe,
    };
    socket.send(JSON.stringify(frame));
  }

  private dropSocket(): void {
    const socket = this.socket;
    this.socket = null;
    this.welcomed = false;
    this.askedAt = null;
    for (const timer of this.pauseTimers) this.env.clearTimer(timer);
    this.pauseTimers.clear();
    this.clear('lifeTimer');
    this.clear('welcomeTimer');
    this.clear('probeTimer');
    if (socket === null) return;
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    try {
      socket.close(1000);
    } catch {
      // Closing what is closed already is what we wanted.
    }
  }

  /** No sign of life in time. The socket may believe otherwise for minutes, so nobody waits for its close. */
  private declareDead(): void {
    this.dropSocket();
    this.comeBack(0, null);
  }

  private closed(code: number, reason: string): void {
    this.dropSocket();
    const after = afterClose(code, reason);
    switch (after.kind) {
      case 'again':
        this.comeBack(after.minimum_ms, after.code);
        return;
      case 'sign_in':
        this.block('disconnected', after.expired ? 'expired' : 'sign_in');
        return;
      case 'reload':
        this.block('failed', 'reload');
        return;
      case 'refused':
        this.block('failed', 'refused');
        return;
    }
  }

  private block(state: ConnectionState, blocked: Blocked): void {
    this.clearRetry();
    this.update({ state, blocked, retryAt: null, roundTripMs: null });
  }

  private comeBack(minimumMs: number, closedWith: string | null): void {
    const now = this.env.now();
    this.notBefore = minimumMs > 0 ? now + minimumMs : this.notBefore;
    const wait = delayBefore(this.tries + 1, this.env.random());
    if (wait === null) {
      this.update({ state: 'failed', blocked: 'exhausted', closedWith, roundTripMs: null });
      this.planProbe();
      return;
    }
    const retryAt = Math.max(now + wait, this.notBefore);
    this.update({ state: 'reconnecting', blocked: null, retryAt, closedWith, roundTripMs: null });
    this.planOpen(retryAt - now);
  }

  private planOpen(ms: number): void {
    this.clearRetry();
    this.retryTimer = this.env.setTimer(() => {
      this.retryTimer = null;
      this.open();
    }, ms);
  }

  /** Failed is not for ever: while somebody looks at the page it asks about once a minute. */
  private planProbe(): void {
    this.clearRetry();
    const wait = Math.max(probeDelay(this.env.random()), this.notBefore - this.env.now());
    this.update({ retryAt: this.env.now() + wait });
    this.retryTimer = this.env.setTimer(() => {
      this.retryTimer = null;
      if (this.env.visible()) this.open();
      else this.planProbe();
    }, wait);
  }

  // Signs of life.

  /** Something happened after which a socket is often half open. It is never trusted, and never thrown away unasked. */
  private wake(_why: WakeUp): void {
    this.update({ online: this.env.online() });
    const { blocked } = this.current;
    if (blocked !== null && blocked !== 'exhausted') return;
    if (this.socketIsAlive()) {
      if (this.welcomed) this.probe();
      return;
    }
    this.tries = 0;
    const now = this.env.now();
    const wait = Math.max(delayBefore(1, this.env.random()) ?? 0, this.notBefore - now);
    this.update({ state: 'reconnecting', blocked: null, attempt: 0, retryAt: now + wait });
    this.planOpen(wait);
  }

  /**
   * The protocol has no ping of the client's, so a probe asks for the list of tasks: every server answers that, it
   * changes nothing, and a stale list is the other thing to expect after a sleep. Any frame counts as the answer.
   */
  private probe(): void {
    if (this.probeTimer !== null) return;
    this.probeTimer = this.env.setTimer(() => {
      this.probeTimer = null;
      this.declareDead();
    }, PROBE_DEADLINE_MS);
    this.askedAt = this.env.now();
    this.send({ type: 'tasks' });
  }

  private watchLife(): void {
    this.clear('lifeTimer');
    this.lifeTimer = this.env.setTimer(() => {
      this.lifeTimer = null;
      this.declareDead();
    }, this.lifeMs);
  }

  // Frames.

  private send(frame: ClientFrame): void {
    const socket = this.socket;
    if (socket === null) return;
    if (socket.readyState !== SOCKET_OPEN) {
      // A socket that cannot send is lost, whatever its owner believed.
      if (socket.readyState !== SOCKET_CONNECTING) this.declareDead();
      return;
    }
    try {
      socket.send(JSON.stringify(frame));
    } catch {
      this.declareDead();
    }
  }

  private receive(data: unknown): void {
    const now = this.env.now();
    this.clear('probeTimer');
    this.watchLife();
    const frame = parseFrame(data);
    // Status listeners need not hear of every frame; `lastSeenAt` travels with the next change.
    this.current = { ...this.current, lastSeenAt: now };
    if (frame === null) return;
    if (!this.welcomed && frame.type !== 'welcome') return;
    this.dispatch(frame, now);
  }

  /** Every frame of every connection goes through here, whether it is the first connection or the hundredth. */
  private dispatch(frame: ServerFrame, now: number): void {
    switch (frame.type) {
      case 'welcome':
        this.welcome(frame, now);
        return;
      case 'heartbeat':
        this.heartbeat(frame, now);
        return;
      case 'subscribed':
      case 'reset':
      case 'snapshot':
      case 'event':
      case 'events':
      case 'caught_up':
      case 'delta': {
        for (const subscription of this.subscriptions) {
          if (subscription.sub === frame.sub) {
            this.judge(subscription, subscription.accept(frame));
            return;
          }
        }
        return;
      }
      case 'tasks':
        this.tasks(frame, now);
        return;
      case 'notice':
        this.tell((handlers) => handlers.notice?.(frame));
        return;
      case 'error': {
        for (const subscription of this.subscriptions) {
          if (frame.sub !== undefined && frame.sub !== null && subscription.sub === frame.sub) {
            this.judge(subscription, subscription.fail(frame));
            return;
          }
        }
        return;
      }
      default:
        // A newer server says more than we know.
        return;
    }
  }

  private welcome(frame: Welcome, now: number): void {
    this.welcomed = true;
    this.tries = 0;
    this.notBefore = 0;
    this.clear('welcomeTimer');
    const { heartbeat_ms: every } = frame;
    const life = frame.limits?.life_ms ?? (every ?? 0) * LIFE_PER_HEARTBEAT;
    this.lifeMs = life > 0 ? life : LIFE_MS;
    this.watchLife();
    if (this.boot !== frame.server.boot) this.rev = null;
    this.boot = frame.server.boot;
    const roundTripMs = this.askedAt === null ? null : now - this.askedAt;
    this.askedAt = null;
    this.update({
      state: 'connected',
      blocked: null,
      attempt: 0,
      retryAt: null,
      everConnected: true,
      closedWith: null,
      server: frame.server,
      roundTripMs,
    });
    // Those that were added while the handshake was under way.
    for (const subscription of this.subscriptions) {
      if (subscription.sub === 0 && subscription.state !== 'ended') this.subscribe(subscription);
    }
  }

  private heartbeat(frame: Heartbeat, now: number): void {
    this.send({ type: 'pong', at: frame.at });
    this.update({ lastSeenAt: now });
    for (const subscription of [...this.subscriptions]) {
      this.judge(subscription, subscription.heartbeat(frame));
    }
  }

  private tasks(frame: TasksFrame, now: number): void {
    if (this.askedAt !== null) {
      this.update({ roundTripMs: now - this.askedAt });
      this.askedAt = null;
    }
    if (!this.wantsTasks) return;
    const jumped = !frame.full && this.rev !== null && frame.rev !== this.rev + 1;
    const unknown = !frame.full && this.rev === null;
    if (!frame.full && this.rev !== null && frame.rev <= this.rev) return;
    this.rev = frame.rev;
    this.tell((handlers) => handlers.tasks?.(frame));
    if (jumped || unknown) this.askForTasks();
  }

  private judge(subscription: Subscription, verdict: Verdict): void {
    if (verdict === 'good') return;
    if (verdict === 'later') {
      this.subscribeIn(subscription, RETRYABLE_PAUSE_MS);
      return;
    }
    const now = this.env.now();
    const last = this.resubscribedAt.get(subscription);
    this.resubscribedAt.set(subscription, now);
    if (last !== undefined && now - last < RESUBSCRIBE_PAUSE_MS) {
      this.subscribeIn(subscription, RESUBSCRIBE_PAUSE_MS);
    } else {
      this.subscribe(subscription);
    }
  }

  private subscribeIn(subscription: Subscription, ms: number): void {
    // Frames of the number that was given up are discarded from now on.
    subscription.sub = -1;
    const timer = this.env.setTimer(() => {
      this.pauseTimers.delete(timer);
      if (this.subscriptions.has(subscription) && subscription.sub === -1) this.subscribe(subscription);
    }, ms);
    this.pauseTimers.add(timer);
  }

  private subscribe(subscription: Subscription): void {
    this.send({ type: 'subscribe', ...subscription.entry(this.nextSub++) });
  }

  // Small things.

  private clearRetry(): void {
    this.clear('retryTimer');
  }

  private clear(name: 'retryTimer' | 'lifeTimer' | 'welcomeTimer' | 'probeTimer'): void {
    if (this[name] !== null) this.env.clearTimer(this[name]);
    this[name] = null;
  }

  private update(change: Partial<ConnectionStatus>): void {
    this.current = { ...this.current, ...change };
    const status = this.current;
    this.tell((handlers) => handlers.status?.(status));
  }

  private tell(action: (handlers: ConnectionHandlers) => void): void {
    for (const handlers of [...this.handlers]) action(handlers);
  }
}
