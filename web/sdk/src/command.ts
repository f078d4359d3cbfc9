// Commands that are under way. Each is kept until the server has said how it ended, and is sent again after every loss,
// always under the same id: so it acts once. It knows no socket; the connection says what can be sent.

import { delayBefore } from './backoff.js';
import type { Environment } from './environment.js';
import type { ClientFrame, Command, Done, ErrorFrame } from './frames.js';
import { Problem, type Api } from './http.js';

/** The server remembers an id for a day. Half of it is what the two clocks and a slow answer may take. */
export const GIVE_UP_MS = 12 * 3_600_000;

/** A call without an answer for so long is as good as lost; the same command can be sent again. */
const CALL_DEADLINE_MS = 30_000;

/** The server asked for patience, or there is no way at the moment. */
const PATIENCE_MS = 5_000;

export interface CommandOptions {
  /** Under one id a command acts once. Give one to send again what may have been sent by an earlier page. */
  id?: string;
  /** When it was given, in milliseconds of the clock; it is given up twelve hours later. */
  at?: number;
  /** No more tries. Whether an earlier one arrived is not known. */
  signal?: AbortSignal;
}

interface Pending {
  id: string;
  command: Command;
  at: number;
  tries: number;
  /** Which way it is under way: over the socket, by a call, or waiting for the next try. */
  way: 'socket' | 'call' | null;
  timer: unknown;
  call: AbortController | null;
  result: Promise<unknown>;
  resolve: (result: unknown) => void;
  reject: (problem: Problem) => void;
}

export interface Ways {
  /** Over the socket; false if there is none that takes commands. */
  send(frame: ClientFrame): boolean;
  /** Whoever sends it for us shall not do so any more. */
  cancel(id: string): void;
  log(text: string, fields?: Record<string, unknown>): void;
}

export class Commands {
  private readonly env: Environment;
  private readonly api: Api;
  private readonly ways: Ways;
  private readonly pending = new Map<string, Pending>();

  constructor(env: Environment, api: Api, ways: Ways) {
    this.env = env;
    this.api = api;
    this.ways = ways;
  }

  add(command: Command, options: CommandOptions = {}): Promise<unknown> {
    const { signal, id = this.env.uuid(), at = this.env.now() } = options;
    const held = this.pending.get(id);
    if (held !== undefined) return held.result;
    const one = { id, command, at, tries: 0, way: null, timer: null, call: null } as unknown as Pending;
    one.result = new Promise((resolve, reject) => {
      one.resolve = resolve;
      one.reject = reject;
    });
    this.pending.set(id, one);
    const stop = () => {
      if (!this.pending.has(id)) return;
      this.ways.cancel(id);
      this.end(one, new Problem(0, 'aborted', 'Taken back', 'It was taken back. It may have arrived.'));
    };
    if (signal?.aborted) stop();
    else this.attempt(one);
    signal?.addEventListener('abort', stop, { once: true });
    return one.result;
  }

  /** There is a socket: what waits goes over it. A call under way may end first; both act once. */
  connected(): void {
    for (const one of [...this.pending.values()]) if (one.way === null) this.attempt(one);
  }

  /** What was sent over the socket may not have arrived. */
  disconnected(): void {
    for (const one of [...this.pending.values()]) {
      if (one.way !== 'socket') continue;
      one.way = null;
      this.attempt(one);
    }
  }

  answered(frame: Done | ErrorFrame): void {
    const one = this.pending.get(frame.id ?? '');
    if (one === undefined) return;
    if (frame.type === 'done') this.end(one, null, frame.result);
    else if (frame.retryable === true) this.later(one, PATIENCE_MS);
    else this.end(one, new Problem(0, frame.code, frame.code, frame.message ?? ''));
  }

  private attempt(one: Pending): void {
    this.env.clearTimer(one.timer);
    if (this.env.now() - one.at >= GIVE_UP_MS) {
      const text = 'It was not answered within twelve hours, and is not sent again.';
      this.end(one, new Problem(0, 'gave_up', 'Given up', text));
      return;
    }
    const { id, command } = one;
    if (one.tries > 0) this.ways.log('sending a command again', { id, op: command.op });
    one.tries += 1;
    if (this.ways.send({ type: 'command', id, ...command })) one.way = 'socket';
    else if (this.pending.has(id)) this.call(one);
  }

  private call(one: Pending): void {
    const stop = new AbortController();
    const answer = this.api.act(one.command, one.id, stop.signal);
    if (answer === null) {
      this.later(one, PATIENCE_MS);
      return;
    }
    one.way = 'call';
    one.call = stop;
    one.timer = this.env.setTimer(() => stop.abort(), CALL_DEADLINE_MS);
    answer.then(
      (result) => this.end(one, null, result),
      (error: unknown) => {
        if (this.pending.get(one.id) !== one || one.call !== stop) return;
        const problem = error instanceof Problem ? error : new Problem(0, 'unreachable', '', String(error));
        const { status } = problem;
        const passes = status < 400 || status >= 500 || [408, 425, 429].includes(status);
        if (passes) this.later(one, problem.retryMs);
        // Signed out: it waits until somebody has signed in and there is a connection again.
        else if (status === 401) one.way = one.call = null;
        else this.end(one, problem);
      },
    );
  }

  private later(one: Pending, minimumMs: number): void {
    this.env.clearTimer(one.timer);
    one.way = null;
    one.call = null;
    const wait = delayBefore(Math.min(one.tries + 1, 7), this.env.random()) ?? 0;
    one.timer = this.env.setTimer(() => this.attempt(one), Math.max(minimumMs, wait));
  }

  private end(one: Pending, problem: Problem | null, result?: unknown): void {
    if (this.pending.get(one.id) !== one) return;
    this.pending.delete(one.id);
    this.env.clearTimer(one.timer);
    one.call?.abort();
    if (problem === null) one.resolve(result);
    else one.reject(problem);
  }
}
