// The heart: one socket at a time, and every decision about when to open the next. Subscriptions and commands outlive
// sockets; each new socket gets one `hello` that takes all of them up again, so that there is one path for the first
// connect and for every other. Other ways to the server, and a connection held by another tab, are sockets to it.

import { addressOf } from './address.js';
import { MAX_ATTEMPTS, delayBefore, probeDelay } from './backoff.js';
import { Channel, type Verdict } from './channel.js';
import { afterClose, type Blocked } from './closing.js';
import { commandsOf, type CommandOptions, type Commands } from './command.js';
import { SOCKET_CONNECTING, SOCKET_OPEN, browserEnvironment } from './environment.js';
import type { Environment, Socket, SocketClass, WakeUp } from './environment.js';
import { UNSUPPORTED, feedSocket } from './feed.js';
import { parseFrame } from './frames.js';
import type {
  ClientFrame,
  Command,
  Cursor,
  Heartbeat,
  Notice,
  Run,
  ServerFrame,
  TasksFrame,
  Welcome,
} from './frames.js';
import { Api, type Problem } from './http.js';
import { Ladder, TRANSPORTS, UP_PAUSE_MS, type Transport } from './ladder.js';
import { RoundTrip, SILENT_PER_HEARTBEAT, qualityOf, type Quality } from './quality.js';
import type { Share, Tabs } from './share.js';
import { Subscription, type SubscriptionHandler } from './subscription.js';

export type ConnectionState = 'disconnected' | 'connecting' | 'connected' | 'reconnecting' | 'failed';

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
  /** Which way frames come, null while none does. */
  readonly transport: Transport | null;
  /** Whether another tab or a worker holds the connection for this one. */
  readonly shared: boolean;
  /** Milliseconds there and back, null until measured. */
  readonly roundTripMs: number | null;
  readonly quality: Quality;
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
  heartbeat?(frame: Heartbeat): void;
}

/** What the client does, in plain words, with the facts beside them. */
export type Log = (text: string, fields?: Record<string, unknown>) => void;

export interface ConnectionOptions {
  /** Any address of the server; without one, the page's own server. */
  url?: string | URL;
  /** Goes into the first frame and into headers. Without one, the session's cookie counts. */
  token?: string;
  /** Ask for the list of tasks, and be told of its changes. */
  tasks?: boolean;
  /** One socket for all tabs of this browser: `tabs()` of `@rejoin/client/tabs`. */
  share?: Share | undefined;
  /** Which ways may be gone, best first. */
  transports?: readonly Transport[];
  /** A class like the browser's; null for none. */
  WebSocket?: SocketClass | null;
  fetch?: typeof globalThis.fetch;
  log?: Log;
  environment?: Partial<Environment>;
}

/**
 * Either side declares the other dead after this long without a frame: a browser cannot see WebSocket pings. It is one
 * heartbeat and three quarters; a welcome that names other numbers is believed.
 */
export const LIFE_MS = 35_000;
const LIFE_PER_HEARTBEAT = 1.75;
const HEARTBEAT_MS = 20_000;

/** From opening a socket to its `welcome`; the server gives a `hello` as long. */
export const WELCOME_DEADLINE_MS = 10_000;

/** A page that woke up waits this long for a sign of life. */
export const PROBE_DEADLINE_MS = 3_000;

/** A subscription that keeps going wrong is taken up again at most this often. */
const RESUBSCRIBE_PAUSE_MS = 1_000;

/** ... and when it goes wrong as often in a row, the socket is not to be trusted either. */
const MAX_DOUBTS = 3;

/** After an error that may pass: the server asked not to be hurried. */
const RETRYABLE_PAUSE_MS = 5_000;

/** Tabs that could not reach the one that holds the connection go on alone. */
const MAX_SHARE_FAILURES = 3;

const PROTOCOL = 'rejoin.v1';

type Timer = 'retry' | 'life' | 'welcome' | 'probe' | 'look' | 'trial';

export class Connection {
  readonly url: string;
  readonly api: Api;
  /** Made per page load and kept in memory only: a copied tab is another client. */
  readonly client: string;

  readonly env: Environment;
  readonly #token: string | undefined;
  readonly #log: Log;
  #wantsTasks: boolean;
  readonly #handlers = new Set<ConnectionHandlers>();
  readonly #channels = new Map<string, Channel>();
  readonly #resubscribedAt = new Map<Channel, number>();
  readonly #commands: Commands;
  readonly #ladder: Ladder;
  #tabs: Tabs | null = null;

  #current: ConnectionStatus;
  #started = false;
  /** When the last frame came, of whatever holds the connection. */
  #heardAt = 0;
  #socket: Socket | null = null;
  #transport: Transport | null = null;
  #welcomed = false;
  /** The best way, tried beside a lesser one that works. */
  #trial: Socket | null = null;
  #lastTrialAt = -Infinity;
  #shareFailures = 0;
  /** Grows with every socket of this page load; the server closes the older of two. */
  #attempts = 0;
  /** Tries since the last confirmed connection. Nothing but the server's word, a wake-up or Retry sets it back. */
  #tries = 0;
  /** The last socket was let go because what it brought was wrong: a `welcome` alone does not make up for that. */
  #distrusted: Channel | null = null;
  #nextSub = 1;
  /** The server asked not to be called before. */
  #notBefore = 0;
  #openedAt = -Infinity;
  #heartbeatMs = HEARTBEAT_MS;
  #lifeMs = LIFE_MS;
  #boot: string | null = null;
  #rev: number | null = null;
  #roundTrip = new RoundTrip();

  readonly #timers = new Map<Timer, unknown>();
  readonly #pauses = new Set<unknown>();
  #stopListening: (() => void) | null = null;

  constructor(options: ConnectionOptions = {}) {
    const { url, token, tasks, log, share } = options;
    const env = { ...browserEnvironment(options.WebSocket), ...options.environment };
    if (options.fetch !== undefined) env.fetch = options.fetch;
    const { live, base } = addressOf(url);
    this.env = env;
    this.url = live;
    this.#token = token;
    this.#wantsTasks = tasks ?? false;
    this.#log = log ?? (() => {});
    this.api = new Api(base, env.fetch, token);
    this.client = env.uuid();
    this.#ladder = new Ladder(
      (options.transports ?? TRANSPORTS).filter((way) => way !== 'websocket' || env.openSocket),
    );
    this.#commands = commandsOf(env, this.api, {
      send: (frame) => this.#takesCommands && this.#send(frame),
      cancel: (id) => void (this.#tabs && this.#send({ type: 'cancel', id })),
      log: (text, fields) => this.#log(text, fields),
    });
    // A credential of one tab is not lent to the others.
    if (share !== undefined && token === undefined) {
      this.#tabs = share(
        live,
        env,
        (more) => new Connection({ ...options, ...more, environment: { ...env, ...more.environment } }),
      );
    }
    this.#current = {
      state: 'disconnected',
      blocked: null,
      attempt: 0,
      maxAttempts: MAX_ATTEMPTS,
      retryAt: null,
      online: env.online(),
      transport: null,
      shared: false,
      roundTripMs: null,
      quality: 'none',
      lastSeenAt: null,
      everConnected: false,
      closedWith: null,
      server: null,
    };
  }

  get status(): ConnectionStatus {
    return this.#current;
  }

  /** Calls back at once with the status, then on every change. Returns the undo. */
  listen(handlers: ConnectionHandlers): () => void {
    this.#handlers.add(handlers);
    handlers.status?.(this.#current);
    return () => this.#handlers.delete(handlers);
  }

  start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#stopListening = this.env.listen(
      (why) => this.wake(why),
      () => this.#update({ online: this.env.online() }),
    );
    this.#open();
  }

  /** Closes for good, e.g. after signing out. `start` begins anew; subscriptions stay. */
  stop(): void {
    this.#started = false;
    this.#stopListening?.();
    this.#stopListening = null;
    this.#dropSocket();
    this.#tabs?.close();
    this.#clear('retry');
    this.#update({ state: 'disconnected', blocked: null, retryAt: null });
  }

  /** A person asks for it: at once, and the schedule starts again. */
  retry(): void {
    if (!this.#started) {
      this.start();
      return;
    }
    if (this.#socketIsAlive()) {
      // Whoever holds the connection for us may be waiting.
      if (this.#tabs !== null) this.#send({ type: 'retry' });
      return;
    }
    this.#tries = 0;
    this.#notBefore = 0;
    this.#ladder.top();
    this.#open();
  }

  /** Watches a task from a place in its log on; without one, from its beginning. */
  watch(task: string, handler: SubscriptionHandler, from?: Cursor): Subscription {
    const subscription = new Subscription(task, handler, from);
    let channel = this.#channels.get(task);
    if (channel === undefined) {
      channel = new Channel(task);
      this.#channels.set(task, channel);
    }
    const idle = channel.ended;
    channel.watchers.add(subscription);
    if (this.#welcomed && (idle || channel.hasNext)) this.#subscribe(channel);
    return subscription;
  }

  unwatch(subscription: Subscription): void {
    subscription.state = 'ended';
    const channel = this.#channels.get(subscription.task);
    if (channel === undefined || !channel.watchers.delete(subscription) || channel.watchers.size > 0) return;
    this.#channels.delete(subscription.task);
    this.#resubscribedAt.delete(channel);
    if (this.#distrusted === channel) this.#distrusted = null;
    if (this.#welcomed && channel.sub > 0) this.#send({ type: 'unsubscribe', sub: channel.sub });
  }

  /** Where the log ends that is watched, as the last heartbeat had it; null if nothing can be said of it now. */
  headOf({ task }: Subscription): number | null {
    const channel = this.#channels.get(task);
    return channel?.open ? channel.head : null;
  }

  /** Has something done, once, however often it has to be sent; gives the run. Rejects with a `Problem`. */
  command(command: Command, options?: CommandOptions): Promise<Run> {
    return this.#commands.add(command, options) as Promise<Run>;
  }

  /** Asks for the whole list of tasks, and from then on for its changes. */
  askForTasks(): void {
    this.#wantsTasks = true;
    if (this.#welcomed) this.#send({ type: 'tasks' });
  }

  /** Something happened after which a socket is often half open. It is never trusted, and never thrown away unasked. */
  wake(why: WakeUp): void {
    this.#log(`page -> active (${why})`);
    this.#update({ online: this.env.online() });
    const { blocked } = this.#current;
    if (blocked !== null && blocked !== 'exhausted') return;
    if (this.#socketIsAlive()) {
      if (!this.#welcomed) return;
      this.#probe(why);
      if (this.env.now() - this.#lastTrialAt >= UP_PAUSE_MS) this.#tryBetter(this.#ladder.best);
      return;
    }
    this.#log('WS not connected - reconnecting');
    this.#tries = 0;
    this.#ladder.top();
    const now = this.env.now();
    const wait = Math.max(delayBefore(1, this.env.random()) ?? 0, this.#notBefore - now);
    this.#update({ state: 'reconnecting', blocked: null, attempt: 0, retryAt: now + wait });
    this.#planOpen(wait);
  }

  // Opening, closing, coming back.

  /** CLOSING and CLOSED are dead. CONNECTING is not: it is no reason for a second socket. */
  #socketIsAlive(): boolean {
    const state = this.#socket?.readyState;
    return state === SOCKET_OPEN || state === SOCKET_CONNECTING;
  }

  get #takesCommands(): boolean {
    return this.#welcomed && (this.#tabs !== null || this.#transport === 'websocket');
  }

  #open(): void {
    this.#clear('retry');
    this.#dropSocket();
    this.#tries += 1;
    this.#openedAt = this.env.now();
    const first = !this.#current.everConnected && this.#current.state !== 'failed' && this.#tries === 1;
    const failed = this.#tries > MAX_ATTEMPTS;
    const shared = this.#tabs !== null;
    this.#transport = this.#ladder.current ?? null;
    this.#update({
      state: failed ? 'failed' : first ? 'connecting' : 'reconnecting',
      blocked: failed ? 'exhausted' : null,
      attempt: Math.min(this.#tries, MAX_ATTEMPTS),
      retryAt: null,
    });
    this.#log('connecting', { by: shared ? 'other tabs' : this.#transport, attempt: this.#tries });
    let socket: Socket;
    try {
      socket = this.#tabs?.open() ?? this.#dial(this.#transport);
    } catch {
      this.#fellShort(1);
      this.#comeBack(0, null);
      return;
    }
    socket.onopen = () => {
      if (socket === this.#socket) this.#hello(socket, this.#transport, [...this.#channels.values()]);
    };
    this.#adopt(socket);
    this.#after('welcome', WELCOME_DEADLINE_MS, () => this.#declareDead('no welcome in time'));
  }

  #adopt(socket: Socket): void {
    this.#socket = socket;
    socket.onmessage = (event) => {
      if (socket === this.#socket) this.#receive(event.data);
    };
    socket.onclose = (event) => {
      // An older socket that closes concerns nobody.
      if (socket === this.#socket) this.#closed(event.code, event.reason);
    };
    // An error is always followed by a close, which says more.
    socket.onerror = null;
  }

  #dial(way: Transport | null): Socket {
    if (way === null)
      throw new Error('There is no way to the server: no WebSocket, and no other was allowed.');
    if (way !== 'websocket') return feedSocket(way === 'sse', this.api, this.env);
    this.#attempts += 1;
    return this.env.openSocket!(this.url, PROTOCOL);
  }

  #hello(socket: Socket, way: Transport | null, channels: Channel[]): void {
    this.#roundTrip.ask(this.env.now());
    const frame: ClientFrame = {
      type: 'hello',
      protocol: 1,
      client: this.client,
      attempt: this.#attempts,
      tasks: this.#wantsTasks,
      subscribe: channels.filter(({ ended }) => !ended).map((channel) => channel.entry(this.#nextSub++)),
    };
    if (this.#token !== undefined) frame.token = this.#token;
    // A stream has to be seen to flow before it is trusted.
    const watched = [...this.#channels.values()].find(({ ended }) => !ended);
    if (way === 'sse') frame.try = watched?.task;
    socket.send(JSON.stringify(frame));
  }

  #dropSocket(): void {
    const socket = this.#socket;
    this.#socket = null;
    this.#welcomed = false;
    this.#roundTrip = new RoundTrip();
    for (const timer of this.#pauses) this.env.clearTimer(timer);
    this.#pauses.clear();
    for (const name of ['life', 'welcome', 'probe', 'look'] as const) this.#clear(name);
    this.#dropTrial();
    if (this.#current.transport !== null) {
      this.#update({ transport: null, shared: false, roundTripMs: null, quality: 'none' });
    }
    if (socket === null) return;
    letGo(socket);
    this.#commands.disconnected();
  }

  /** No sign of life in time. The socket may believe otherwise for minutes, so nobody waits for its close. */
  #declareDead(why: string): void {
    this.#log(why);
    if (!this.#welcomed) this.#fellShort(2);
    this.#dropSocket();
    this.#comeBack(0, null);
  }

  #closed(code: number, reason: string): void {
    const { blocked, minimumMs, said } = afterClose(code, reason);
    this.#log('connection closed', { code, reason });
    // The server's own codes are its word, whatever it is.
    if (!this.#welcomed && code < 4000) this.#fellShort(code === UNSUPPORTED ? 2 : 1);
    this.#dropSocket();
    if (blocked === null) {
      this.#comeBack(minimumMs, said);
      return;
    }
    this.#log(`waiting for a person: ${blocked}`);
    const state = blocked === 'sign_in' || blocked === 'expired' ? 'disconnected' : 'failed';
    this.#update({ state, blocked, retryAt: null });
  }

  #comeBack(minimumMs: number, closedWith: string | null): void {
    const now = this.env.now();
    this.#notBefore = minimumMs > 0 ? now + minimumMs : this.#notBefore;
    // Another tab takes over at once, and there is no server to spare.
    const wait =
      this.#tabs !== null
        ? Math.max(0, this.#openedAt + RESUBSCRIBE_PAUSE_MS - now)
        : delayBefore(this.#tries + 1, this.env.random());
    if (wait === null) {
      this.#log('connection failed');
      this.#update({ state: 'failed', blocked: 'exhausted', closedWith });
      this.#planProbe();
      return;
    }
    const retryAt = Math.max(now + wait, this.#notBefore);
    this.#log('WS not connected - reconnecting', {
      inMs: Math.round(retryAt - now),
      attempt: this.#tries + 1,
    });
    this.#update({ state: 'reconnecting', blocked: null, retryAt, closedWith });
    this.#planOpen(retryAt - now);
  }

  #planOpen(ms: number): void {
    this.#after('retry', ms, () => this.#open());
  }

  /** Failed is not for ever: while somebody looks at the page it asks about once a minute. */
  #planProbe(): void {
    const wait = Math.max(probeDelay(this.env.random()), this.#notBefore - this.env.now());
    this.#update({ retryAt: this.env.now() + wait });
    this.#after('retry', wait, () => {
      if (this.env.visible()) this.#open();
      else this.#planProbe();
    });
  }

  // Other ways.

  /** A socket ended before the server's word. If that happens too often, and calls get through, another way is taken. */
  #fellShort(weight: number): void {
    if (this.#tabs !== null) {
      this.#shareFailures += weight;
      if (this.#shareFailures < MAX_SHARE_FAILURES) return;
      this.#log('other tabs cannot be reached - going on alone');
      this.#tabs.close();
      this.#tabs = null;
      this.#tries = 0;
      return;
    }
    if (this.#ladder.failed(weight)) void this.#lookForAnother(this.#ladder.current);
  }

  async #lookForAnother(from: Transport | undefined): Promise<void> {
    if (!(await this.#callsGetThrough())) return;
    if (!this.#started || this.#welcomed || this.#ladder.current !== from) return;
    this.#ladder.down();
    this.#log(`no way by ${from} - going by ${this.#ladder.current}`);
    this.#tries = 0;
    this.#open();
  }

  /** A refusal is an answer as well, if it is the server's. */
  async #callsGetThrough(): Promise<boolean> {
    const stop = new AbortController();
    const timer = this.env.setTimer(() => stop.abort(), PROBE_DEADLINE_MS);
    try {
      await this.api.status(stop.signal);
      return true;
    } catch (error) {
      const { status = 500, code } = error as Partial<Problem>;
      return status >= 400 && status < 500 && code !== 'unknown';
    } finally {
      this.env.clearTimer(timer);
    }
  }

  #planLook(): void {
    if (this.#ladder.isBest || this.#tabs !== null) return;
    this.#after('look', this.#ladder.nextLook(this.env.random()), () => {
      if (this.env.visible()) this.#tryBetter(this.#ladder.best);
      this.#planLook();
    });
  }

  /** A better way, beside the one that works: that one is let go only when the better one has brought the server's word. */
  #tryBetter(way: Transport | undefined): void {
    if (this.#trial !== null || !this.#welcomed || way === undefined || way === this.#ladder.current) return;
    this.#log(`trying ${way} again`);
    this.#lastTrialAt = this.env.now();
    const failed = () => {
      this.#dropTrial();
      this.#tryBetter(this.#ladder.below(way));
    };
    const socket = this.#dial(way);
    this.#trial = socket;
    socket.onopen = () => this.#hello(socket, way, []);
    socket.onclose = failed;
    socket.onmessage = ({ data }) => {
      const frame = parseFrame(data);
      if (frame?.type !== 'welcome') return;
      this.#trial = null;
      this.#clear('trial');
      if (this.#socket !== null) letGo(this.#socket);
      this.#ladder.take(way);
      this.#transport = way;
      this.#adopt(socket);
      for (const channel of this.#channels.values()) channel.sub = 0;
      this.#welcome(frame, this.env.now());
    };
    this.#after('trial', WELCOME_DEADLINE_MS, failed);
  }

  #dropTrial(): void {
    this.#clear('trial');
    if (this.#trial !== null) letGo(this.#trial);
    this.#trial = null;
  }

  // Signs of life.

  /**
   * Any frame counts as the answer. The protocol has no ping of the client's: who shows the list of tasks asks for it, as
   * a stale one is the other thing to expect after a sleep; who does not, and must not be sent it, subscribes a task
   * anew; and who watches nothing has nothing to lose by a new socket.
   */
  #probe(why: WakeUp): void {
    if (this.#timers.has('probe')) return;
    this.#after('probe', PROBE_DEADLINE_MS, () => this.#declareDead('no sign of life'));
    this.#roundTrip.ask(this.env.now());
    if (this.#tabs !== null) this.#send({ type: 'wake', why });
    else if (this.#transport !== 'websocket') this.#send({ type: 'probe' });
    else if (this.#wantsTasks) this.#send({ type: 'tasks' });
    else {
      const channels = [...this.#channels.values()].filter(({ ended }) => !ended);
      // One that waits for its answer is a question already.
      if (channels.some(({ answered, sub }) => !answered && sub > 0)) return;
      if (channels[0] !== undefined) this.#subscribe(channels[0]);
      else this.#declareDead('nothing to ask for on this socket - taking another');
    }
  }

  /** Looks at the clock when it is due, and no more often: frames may come by the thousand. */
  #watchLife(): void {
    const silentMs = this.env.now() - this.#heardAt;
    const overdueMs = this.#heartbeatMs * SILENT_PER_HEARTBEAT;
    if (silentMs >= this.#lifeMs) {
      this.#declareDead('nothing was heard for too long');
      return;
    }
    if (silentMs >= overdueMs && this.#tabs === null) this.#update({ quality: 'silent' });
    this.#after(
      'life',
      (silentMs < overdueMs ? Math.min(overdueMs, this.#lifeMs) : this.#lifeMs) - silentMs,
      () => this.#watchLife(),
    );
  }

  // Frames.

  #send(frame: ClientFrame): boolean {
    const socket = this.#socket;
    if (socket === null || socket.readyState === SOCKET_CONNECTING) return false;
    try {
      if (socket.readyState === SOCKET_OPEN) {
        socket.send(JSON.stringify(frame));
        return true;
      }
    } catch {
      // As below.
    }
    // A socket that cannot send is lost, whatever its owner believed.
    this.#declareDead('sending failed');
    return false;
  }

  #receive(data: unknown): void {
    const now = this.env.now();
    this.#clear('probe');
    this.#heardAt = now;
    if (this.#tabs === null) {
      // Status listeners need not hear of every frame; `lastSeenAt` travels with the next change.
      this.#current = { ...this.#current, lastSeenAt: now };
      if (this.#current.quality === 'silent') this.#measured(this.#current.roundTripMs);
    }
    const frame = parseFrame(data);
    if (frame === null || (!this.#welcomed && frame.type !== 'welcome')) return;
    this.#dispatch(frame, now);
  }

  /** Every frame of every connection goes through here, whether it is the first connection or the hundredth. */
  #dispatch(frame: ServerFrame, now: number): void {
    switch (frame.type) {
      case 'welcome':
        this.#welcome(frame, now);
        return;
      case 'heartbeat':
        this.#heartbeat(frame, now);
        return;
      case 'subscribed':
        this.#measured(this.#roundTrip.answer(now));
        this.#forward(frame.sub, (channel) => channel.accept(frame));
        return;
      case 'reset':
      case 'snapshot':
      case 'event':
      case 'events':
      case 'caught_up':
      case 'delta':
        this.#forward(frame.sub, (channel) => channel.accept(frame));
        return;
      case 'tasks':
        this.#measured(this.#roundTrip.answer(now));
        this.#tasks(frame);
        return;
      case 'notice':
        this.#tell((handlers) => handlers.notice?.(frame));
        return;
      case 'done':
        this.#commands.answered(frame);
        return;
      case 'error':
        if (frame.id != null) this.#commands.answered(frame);
        else if (frame.sub != null) this.#forward(frame.sub, (channel) => channel.fail(frame));
        else this.#log('the server did not understand', { code: frame.code, message: frame.message });
        return;
      case 'hub':
        this.#mirror(frame.status);
        return;
      default:
        // A newer server says more than we know.
        return;
    }
  }

  #forward(sub: number, action: (channel: Channel) => Verdict): void {
    for (const channel of this.#channels.values()) {
      if (channel.sub === sub) {
        this.#judge(channel, action);
        return;
      }
    }
  }

  #welcome(frame: Welcome, now: number): void {
    const { everConnected } = this.#current;
    this.#welcomed = true;
    this.#shareFailures = 0;
    this.#ladder.confirmed();
    if (this.#distrusted === null) this.#tries = 0;
    this.#notBefore = 0;
    this.#clear('welcome');
    this.#heartbeatMs = frame.heartbeat_ms || HEARTBEAT_MS;
    this.#lifeMs = frame.limits?.life_ms || (frame.heartbeat_ms ?? 0) * LIFE_PER_HEARTBEAT || LIFE_MS;
    this.#heardAt = now;
    this.#watchLife();
    if (this.#boot !== frame.server.boot) this.#rev = null;
    this.#boot = frame.server.boot;
    // Of a connection that another tab holds the state follows.
    if (this.#tabs === null) {
      this.#log(everConnected ? 'reconnected - notifying listeners' : 'connected', { by: this.#transport });
      const roundTripMs = this.#roundTrip.answer(now);
      this.#update({
        state: 'connected',
        blocked: null,
        attempt: 0,
        retryAt: null,
        everConnected: true,
        closedWith: null,
        transport: this.#transport,
        server: frame.server,
        lastSeenAt: now,
        roundTripMs,
        quality: qualityOf(roundTripMs, 0, this.#heartbeatMs),
      });
      this.#planLook();
    }
    // Those that were added while the handshake was under way.
    for (const channel of this.#channels.values()) {
      if (!channel.ended && (channel.sub === 0 || channel.hasNext)) this.#subscribe(channel);
    }
    this.#commands.connected();
  }

  /** Another tab or a worker holds the connection: its state is ours. */
  #mirror(status: ConnectionStatus): void {
    if (status.state === 'connected' && this.#current.state !== 'connected') {
      this.#log(this.#current.everConnected ? 'reconnected - notifying listeners' : 'connected', {
        by: 'other tabs',
      });
    }
    this.#update({ ...status, shared: !this.#tabs?.holds() });
    this.#send({ type: 'pong', at: '', visible: this.env.visible() });
  }

  #heartbeat(frame: Heartbeat, now: number): void {
    this.#send(
      this.#tabs !== null
        ? { type: 'pong', at: frame.at, visible: this.env.visible() }
        : { type: 'pong', at: frame.at },
    );
    // Calls measure themselves; their moment is that of this clock.
    const calls = this.#transport !== 'websocket';
    this.#measured(calls ? this.#roundTrip.answer(now) : this.#roundTrip.heartbeat(frame.at, now));
    for (const channel of [...this.#channels.values()]) {
      this.#judge(channel, () => channel.heartbeat(frame));
    }
    this.#tell((handlers) => handlers.heartbeat?.(frame));
  }

  #tasks(frame: TasksFrame): void {
    for (const { id, gen } of frame.items) {
      const channel = this.#channels.get(id);
      if (gen && channel?.reopens(gen)) this.#subscribe(channel);
    }
    if (!this.#wantsTasks) return;
    const jumped = !frame.full && this.#rev !== null && frame.rev !== this.#rev + 1;
    const unknown = !frame.full && this.#rev === null;
    if (!frame.full && this.#rev !== null && frame.rev <= this.#rev) return;
    this.#rev = frame.rev;
    this.#tell((handlers) => handlers.tasks?.(frame));
    if (jumped || unknown) this.askForTasks();
  }

  #measured(roundTripMs: number | null): void {
    if (this.#tabs !== null) return;
    this.#update({ roundTripMs, quality: qualityOf(roundTripMs, 0, this.#heartbeatMs) });
  }

  #judge(channel: Channel, action: (channel: Channel) => Verdict): void {
    let verdict: Verdict = 'good';
    try {
      verdict = action(channel);
    } finally {
      this.#obey(channel, verdict);
    }
  }

  #obey(channel: Channel, verdict: Verdict): void {
    // It may be that a handler has closed all.
    if (!this.#welcomed || this.#channels.get(channel.task) !== channel) return;
    if (verdict === 'later') {
      this.#subscribeIn(channel, RETRYABLE_PAUSE_MS);
      return;
    }
    if (verdict === 'good') {
      if (this.#distrusted === channel && channel.proven) {
        this.#distrusted = null;
        this.#tries = 0;
      }
      if (channel.hasNext) this.#subscribe(channel);
      return;
    }
    channel.doubts += 1;
    if (channel.doubts >= MAX_DOUBTS) {
      channel.doubts = 0;
      channel.proven = false;
      this.#distrusted = channel;
      this.#declareDead(`what comes of ${channel.task} keeps being wrong`);
      return;
    }
    this.#log('subscribing again', { task: channel.task });
    const now = this.env.now();
    const due = Math.max(now, (this.#resubscribedAt.get(channel) ?? -Infinity) + RESUBSCRIBE_PAUSE_MS);
    this.#resubscribedAt.set(channel, due);
    if (due > now) this.#subscribeIn(channel, due - now);
    else this.#subscribe(channel);
  }

  #subscribeIn(channel: Channel, ms: number): void {
    // Frames of the number that was given up are discarded from now on.
    channel.sub = -1;
    const timer = this.env.setTimer(() => {
      this.#pauses.delete(timer);
      if (this.#channels.get(channel.task) === channel && channel.sub === -1) this.#subscribe(channel);
    }, ms);
    this.#pauses.add(timer);
  }

  #subscribe(channel: Channel): void {
    this.#roundTrip.ask(this.env.now());
    this.#send({ type: 'subscribe', ...channel.entry(this.#nextSub++) });
  }

  // Small things.

  #after(name: Timer, ms: number, action: () => void): void {
    this.#clear(name);
    const run = () => {
      this.#timers.delete(name);
      action();
    };
    this.#timers.set(name, this.env.setTimer(run, ms));
  }

  #clear(name: Timer): void {
    const timer = this.#timers.get(name);
    this.#timers.delete(name);
    if (timer !== undefined) this.env.clearTimer(timer);
  }

  #update(change: Partial<ConnectionStatus>): void {
    this.#current = { ...this.#current, ...change };
    const status = this.#current;
    this.#tell((handlers) => handlers.status?.(status));
  }

  #tell(action: (handlers: ConnectionHandlers) => void): void {
    for (const handlers of [...this.#handlers]) action(handlers);
  }
}

function letGo(socket: Socket): void {
  socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
  try {
    socket.close(1000);
  } catch {
    // Closing what is closed already is what we wanted.
  }
}
