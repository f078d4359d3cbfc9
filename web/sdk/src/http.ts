// The calls that are not live. Errors are `application/problem+json` and keep their stable `code`.

import type { Command, EventPage, Run } from './frames.js';

export class Problem extends Error {
  /** 0 when no server answered. */
  readonly status: number;
  /** Stable, for programs: not_found, task_running, ... `unreachable` when no server answered. */
  readonly code: string;
  readonly body: Record<string, unknown>;
  /** The server asked not to be called again before so many milliseconds. */
  readonly retryMs: number;

  constructor(status: number, code: string, detail: string, body: Record<string, unknown> = {}, retryMs = 0) {
    super(detail);
    this.name = 'Problem';
    this.status = status;
    this.code = code;
    this.body = body;
    this.retryMs = retryMs;
  }
}

async function problemOf(response: Response): Promise<Problem> {
  const { status, headers } = response;
  // Something between us and the server may have answered in its own words.
  const body = ((await response.json().catch(() => null)) ?? {}) as Record<string, unknown>;
  const text = (key: string, otherwise: string) => (typeof body[key] === 'string' ? body[key] : otherwise);
  const detail = text('detail', text('title', `The server answered ${status}.`));
  return new Problem(
    status,
    text('code', 'unknown'),
    detail,
    body,
    Number(headers.get('Retry-After')) * 1_000,
  );
}

export interface PageOf<T> {
  items: T[];
  next?: string | null;
}

export interface EventQuery {
  gen?: string | null;
  after?: number;
  before?: number;
  limit?: number;
  run?: string;
}

export interface CallOptions {
  query?: object;
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

export class Api {
  readonly base: string;
  readonly #fetch: typeof globalThis.fetch;
  readonly #token: string | undefined;

  constructor(base = '/api/v1', fetch?: typeof globalThis.fetch, token?: string) {
    this.base = base;
    // Looked up at each call: called as a method of anything else, the browser's own refuses.
    this.#fetch = fetch ?? ((...args) => globalThis.fetch(...args));
    this.#token = token;
  }

  status(signal?: AbortSignal): Promise<{ version: string }> {
    return this.call('GET', '/status', { signal });
  }

  /** A page of a task's log: `after` reads on, `before` reads back; both are exclusive. */
  events(task: string, query: EventQuery, signal?: AbortSignal): Promise<EventPage> {
    return this.call('GET', `/tasks/${encodeURIComponent(task)}/events`, { query, signal });
  }

  /** A command as a call: with its id as the key it acts once, whichever way it was sent. Null where there is no call. */
  act({ op, ...command }: Command, id: string, signal?: AbortSignal): Promise<unknown> | null {
    const { task, run, ...body } = command as { task?: string; run?: string };
    const of = op === 'run' ? task : run;
    if (of === undefined) return null;
    const path = `/${op === 'run' ? 'tasks' : 'runs'}/${encodeURIComponent(of)}/${op === 'run' ? 'runs' : op}`;
    return this.call<{ run?: Run }>('POST', path, { body, signal, headers: { 'Idempotency-Key': id } }).then(
      (answer) => answer?.run ?? answer,
    );
  }

  /** Any call. */
  async call<T>(
    method: string,
    path: string,
    { query = {}, body, headers, signal }: CallOptions = {},
  ): Promise<T> {
    const given = Object.entries(query).filter(([, value]) => value != null);
    const suffix = given.length > 0 ? `?${new URLSearchParams(given)}` : '';
    const unsafe =
      method === 'GET'
        ? {}
        : { body: JSON.stringify(body ?? {}), headers: { 'Content-Type': 'application/json', ...headers } };
    const response = await this.open(path + suffix, 'application/json', {
      method,
      headers,
      signal,
      ...unsafe,
    });
    return response.status === 204 ? (undefined as T) : ((await response.json()) as T);
  }

  /** The answer as it comes; for what is not JSON. */
  async open(path: string, accept: string, { signal, ...init }: CallOptions & { method?: string } = {}) {
    const headers: Record<string, string> = { Accept: accept, ...init.headers };
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    const response = await this.#fetch(this.base + path, {
      credentials: 'same-origin',
      cache: 'no-store',
      ...(init as object),
      ...(signal ? { signal } : {}),
      headers,
    }).catch(() => {
      throw new Problem(0, 'unreachable', 'The server could not be reached.');
    });
    if (!response.ok) throw await problemOf(response);
    return response;
  }
}
