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

export interface Commands {
  add(command: Command, options?: CommandOptions): Promise<unknown>;
  /** There is a socket: what waits goes over it, and so does what a call was made for that may hang. */
  connected(): void;
  /** What was sent over the socket may not have arrived. */
  disconnected(): void;
  answered(frame: Done | ErrorFrame): void;
}

export function commandsOf(env: Environment, api: Api, ways: Ways): Commands {
  const pending = new Map<string, Pending>();

  function attempt(one: Pending): void {
    const { id, command } = one;
    env.clearTimer(one.timer);
    if (env.now() - one.at >= GIVE_UP_MS) {
      end(one, new Problem(0, 'gave_up', 'It was not answered within twelve hours.'));
      return;
    }
    if (one.tries > 0) ways.log('sending a command again', { id, op: command.op });
    one.tries += 1;
    if (ways.send({ type: 'command', id, ...command })) one.way = 'socket';
    else if (pending.has(id)) call(one);
  }

  function call(one: Pending): void {
    const stop = new AbortController();
    const answer = api.act(one.command, one.id, stop.signal);
    if (answer === null) {
      later(one, PATIENCE_MS);
      return;
    }
    one.way = 'call';
    one.call = stop;
    one.timer = env.setTimer(() => stop.abort(), CALL_DEADLINE_MS);
    answer.then(
      (result) => end(one, null, result),
      (error: Partial<Problem>) => {
        if (pending.get(one.id) !== one || one.call !== stop) return;
        const { status = 0, retryMs = 0 } = error;
        // What does not depend on the command passes.
        if (status < 400 || status >= 500 || [408, 425, 429].includes(status)) later(one, retryMs);
        // Signed out: it waits until somebody has signed in and there is a connection again.
        else if (status === 401) one.way = one.call = null;
        else end(one, error as Problem);
      },
    );
  }

  function later(one: Pending, minimumMs: number): void {
    env.clearTimer(one.timer);
    one.way = one.call = null;
    const wait = delayBefore(Math.min(one.tries + 1, 7), env.random()) ?? 0;
    one.timer = env.setTimer(() => attempt(one), Math.max(minimumMs, wait));
  }

  function end(one: Pending, problem: Problem | null, result?: unknown): void {
    if (pending.get(one.id) !== one) return;
    pending.delete(one.id);
    env.clearTimer(one.timer);
    one.call?.abort();
    if (problem === null) one.resolve(result);
    else one.reject(problem);
  }

  return {
    add(command, { signal, id = env.uuid(), at = env.now() } = {}) {
      const held = pending.get(id);
      if (held !== undefined) return held.result;
      const one = { id, command, at, tries: 0, way: null, timer: null, call: null } as unknown as Pending;
      one.result = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }));
      pending.set(id, one);
      const stop = () => {
        if (pending.get(id) !== one) return;
        ways.cancel(id);
        end(one, new Problem(0, 'aborted', 'It was taken back, and may have arrived.'));
      };
      if (signal?.aborted) stop();
      else attempt(one);
      signal?.addEventListener('abort', stop);
      return one.result;
    },
    connected() {
      for (const one of [...pending.values()]) {
        if (one.way === 'socket') continue;
        one.call?.abort();
        one.call = null;
        attempt(one);
      }
    },
    disconnected() {
      for (const one of [...pending.values()]) {
        if (one.way !== 'socket') continue;
        one.way = null;
        attempt(one);
      }
    },
    answered(frame) {
      const one = pending.get(frame.id ?? '');
      if (one === undefined) return;
      if (frame.type === 'done') end(one, null, frame.result);
      else if (frame.retryable === true) later(one, PATIENCE_MS);
      else end(one, new Problem(0, frame.code, frame.message ?? frame.code));
    },
  };
}
