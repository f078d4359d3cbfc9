// The calls that are not live. Errors are `application/problem+json` and keep their stable `code`.

import type { Command, EventPage, Run, Task } from './frames.js';

export class Problem extends Error {
  readonly status: number;
  /** Stable, for programs: not_found, task_running, ... `unreachable` when no server answered. */
  readonly code: string;
  readonly title: string;
  readonly body: Record<string, unknown>;
  /** The server asked not to be called again before so many milliseconds. */
  retryMs = 0;

  constructor(
    status: number,
    code: string,
    title: string,
    detail: string,
    body: Record<string, unknown> = {},
  ) {
    super(detail || title);
    this.name = 'Problem';
    this.status = status;
    this.code = code;
    this.title = title;
    this.body = body;
  }
}

async function problemOf(response: Response): Promise<Problem> {
  let body: Record<string, unknown> = {};
  try {
    const value: unknown = await response.json();
    if (typeof value === 'object' && value !== null) body = value as Record<string, unknown>;
  } catch {
    // Something between us and the server answered in its own words.
  }
  const text = (key: string) => (typeof body[key] === 'string' ? body[key] : '');
  const title = text('title') || `The server answered ${response.status}`;
  const problem = new Problem(response.status, text('code') || 'unknown', title, text('detail'), body);
  problem.retryMs = (Number(response.headers.get('Retry-After')) || 0) * 1_000;
  return problem;
}

export interface PageOf<T> {
  items: T[];
  next?: string | null;
}

export interface Upcoming {
  at: string;
  note?: string | null;
}

export interface Session {
  user: string;
  credential: string;
  device?: string | null;
}

/** A browser that is signed in. */
export interface Device {
  id: string;
  /** What it says it is. */
  name: string;
  created_at: string;
  last_seen: string;
  current?: boolean;
}

type Query = Record<string, string | number | null | undefined>;

export interface EventQuery {
  gen?: string | null;
  after?: number;
  before?: number;
  limit?: number;
  run?: string;
}

export class Api {
  readonly base: string;
  private readonly fetch: typeof globalThis.fetch;
  private readonly token: string | undefined;

  constructor(
    base = '/api/v1',
    fetch: typeof globalThis.fetch = (...args) => globalThis.fetch(...args),
    token?: string,
  ) {
    this.base = base;
    this.fetch = fetch;
    this.token = token;
  }

  status = (signal?: AbortSignal) => this.call<{ version: string }>('GET', '/status', { signal });

  session = () => this.call<Session>('GET', '/session');
  signIn = (proof: { code: string } | { token: string }) =>
    this.call<void>('POST', '/session', { body: proof });
  devices = () => this.call<PageOf<Device>>('GET', '/session/devices');
  revoke = (device: string) => this.call<void>('DELETE', `/session/devices/${encodeURIComponent(device)}`);
  signOut = () => this.call<void>('DELETE', '/session');

  tasks = (query: { cursor?: string | null } = {}, signal?: AbortSignal) =>
    this.call<PageOf<Task>>('GET', '/tasks', { query, signal });
  task = (task: string, signal?: AbortSignal) =>
    this.call<Task>('GET', `/tasks/${encodeURIComponent(task)}`, { signal });
  pause = (task: string) => this.call<Task>('POST', `/tasks/${encodeURIComponent(task)}/pause`);
  resume = (task: string) => this.call<Task>('POST', `/tasks/${encodeURIComponent(task)}/resume`);
  next = (task: string, n = 3) =>
    this.call<PageOf<Upcoming>>('GET', `/tasks/${encodeURIComponent(task)}/next`, { query: { n } });

  runs = (task: string, query: { limit?: number; cursor?: string | null } = {}, signal?: AbortSignal) =>
    this.call<PageOf<Run>>('GET', `/tasks/${encodeURIComponent(task)}/runs`, { query, signal });
  run = (run: string) => this.call<Run>('GET', `/runs/${encodeURIComponent(run)}`);
  stopRun = (run: string) => this.call<Run>('POST', `/runs/${encodeURIComponent(run)}/stop`);

  /** `key` makes a repeated call act once. */
  startRun = (task: string, params: Record<string, unknown>, key: string) =>
    this.call<{ run: Run; url: string }>('POST', `/tasks/${encodeURIComponent(task)}/runs`, {
      body: { params },
      headers: { 'Idempotency-Key': key },
    });

  /** A page of a task's log: `after` reads on, `before` reads back; both are exclusive. */
  events = (task: string, query: EventQuery, signal?: AbortSignal) =>
    this.call<EventPage>('GET', `/tasks/${encodeURIComponent(task)}/events`, { query: { ...query }, signal });

  /** A command as a call: with its id as the key it acts once, whichever way it was sent. Null where there is no call. */
  act(command: Command, id: string, signal?: AbortSignal): Promise<unknown> | null {
    const { op } = command;
    const post = (path: string, body: unknown = {}) =>
      this.call<unknown>('POST', path, { body, signal, headers: { 'Idempotency-Key': id } });
    if (op === 'run') {
      const { task, params = {} } = command;
      return post(`/tasks/${encodeURIComponent(task)}/runs`, { params }).then(
        (answer) => (answer as { run: Run }).run,
      );
    }
    if (command.run === undefined) return null;
    const rest = op === 'message' ? { text: command.text } : op === 'stop' ? {} : { request: command.request };
    return post(`/runs/${encodeURIComponent(command.run)}/${op}`, rest);
  }

  outputUrl = (run: string, call: string) =>
    `${this.base}/runs/${encodeURIComponent(run)}/output/${encodeURIComponent(call)}`;
  fullEventUrl = (run: string, seq: number) =>
    `${this.base}/runs/${encodeURIComponent(run)}/events/${seq}/full`;

  /** The answer as it comes; for what is not JSON. */
  async open(path: string, accept: string, headers: Record<string, string> = {}, rest: RequestInit = {}) {
    const credential: Record<string, string> = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    let response: Response;
    try {
      response = await this.fetch(this.base + path, {
        credentials: 'same-origin',
        cache: 'no-store',
        ...rest,
        headers: { Accept: accept, ...credential, ...headers },
      });
    } catch {
      throw new Problem(0, 'unreachable', 'No answer', 'The server could not be reached.');
    }
    if (!response.ok) throw await problemOf(response);
    return response;
  }

  private async call<T>(
    method: string,
    path: string,
    options: { body?: unknown; query?: Query; headers?: Record<string, string>; signal?: AbortSignal | undefined } = {},
  ): Promise<T> {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(options.query ?? {})) {
      if (value !== null && value !== undefined) query.set(key, String(value));
    }
    const unsafe = method !== 'GET';
    const response = await this.open(
      query.size > 0 ? `${path}?${query}` : path,
      'application/json',
      { ...options.headers, ...(unsafe ? { 'Content-Type': 'application/json' } : {}) },
      {
        method,
        ...(options.signal ? { signal: options.signal } : {}),
        ...(unsafe ? { body: JSON.stringify(options.body ?? {}) } : {}),
      },
    );
    if (response.status === 204) return undefined as T;
    return (await response.json()) as T;
  }
}
