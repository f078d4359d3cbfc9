// The calls that are not live. Errors are `application/problem+json` and keep their stable `code`.

import type { EventPage, Run, Task } from './frames.js';

export class Problem extends Error {
  readonly status: number;
  /** Stable, for programs: not_found, task_running, ... `unreachable` when no server answered. */
  readonly code: string;
  readonly title: string;
  readonly body: Record<string, unknown>;

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
  return new Problem(response.status, text('code') || 'unknown', title, text('detail'), body);
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
  private readonly base: string;
  private readonly fetch: typeof globalThis.fetch;

  constructor(base = '/api/v1', fetch: typeof globalThis.fetch = (...args) => globalThis.fetch(...args)) {
    this.base = base;
    this.fetch = fetch;
  }

  session = () => this.call<Session>('GET', '/session');
  signIn = (proof: { code: string } | { token: string }) =>
    this.call<void>('POST', '/session', { body: proof });
  devices = () => this.call<PageOf<Device>>('GET', '/session/devices');
  revoke = (device: string) => this.call<void>('DELETE', `/session/devices/${encodeURIComponent(device)}`);
  signOut = () => this.call<void>('DELETE', '/session');

  tasks = (query: { cursor?: string | null } = {}) => this.call<PageOf<Task>>('GET', '/tasks', { query });
  task = (task: string) => this.call<Task>('GET', `/tasks/${encodeURIComponent(task)}`);
  pause = (task: string) => this.call<Task>('POST', `/tasks/${encodeURIComponent(task)}/pause`);
  resume = (task: string) => this.call<Task>('POST', `/tasks/${encodeURIComponent(task)}/resume`);
  next = (task: string, n = 3) =>
    this.call<PageOf<Upcoming>>('GET', `/tasks/${encodeURIComponent(task)}/next`, { query: { n } });

  runs = (task: string, query: { limit?: number; cursor?: string | null } = {}) =>
    this.call<PageOf<Run>>('GET', `/tasks/${encodeURIComponent(task)}/runs`, { query });
  run = (run: string) => this.call<Run>('GET', `/runs/${encodeURIComponent(run)}`);
  stopRun = (run: string) => this.call<Run>('POST', `/runs/${encodeURIComponent(run)}/stop`);

  /** `key` makes a repeated call act once. */
  startRun = (task: string, params: Record<string, unknown>, key: string) =>
    this.call<{ run: Run; url: string }>('POST', `/tasks/${encodeURIComponent(task)}/runs`, {
      body: { params },
      headers: { 'Idempotency-Key': key },
    });

  /** A page of a task's log: `after` reads on, `before` reads back; both are exclusive. */
  events = (task: string, query: EventQuery) =>
    this.call<EventPage>('GET', `/tasks/${encodeURIComponent(task)}/events`, { query: { ...query } });

  outputUrl = (run: string, call: string) =>
    `${this.base}/runs/${encodeURIComponent(run)}/output/${encodeURIComponent(call)}`;
  fullEventUrl = (run: string, seq: number) =>
    `${this.base}/runs/${encodeURIComponent(run)}/events/${seq}/full`;

  private async call<T>(
    method: string,
    path: string,
    options: { body?: unknown; query?: Query; headers?: Record<string, string> } = {},
  ): Promise<T> {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(options.query ?? {})) {
      if (value !== null && value !== undefined) query.set(key, String(value));
    }
    const suffix = query.size > 0 ? `?${query}` : '';
    const headers: Record<string, string> = { Accept: 'application/json', ...options.headers };
    const unsafe = method !== 'GET';
    if (unsafe) headers['Content-Type'] = 'application/json';
    let response: Response;
    try {
      response = await this.fetch(`${this.base}${path}${suffix}`, {
        method,
        headers,
        credentials: 'same-origin',
        ...(unsafe ? { body: JSON.stringify(options.body ?? {}) } : {}),
      });
    } catch {
      throw new Problem(0, 'unreachable', 'No answer', 'The server could not be reached.');
    }
    if (!response.ok) throw await problemOf(response);
    if (response.status === 204) return undefined as T;
    return (await response.json()) as T;
  }
}
