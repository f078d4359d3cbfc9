// The wire: every object that travels between the server and a client, under the names the server gives them.
// It knows no socket and holds no state. Unknown fields are ignored; absent and null mean the same.

import type { ConnectionStatus } from './connection.js';
import type { WakeUp } from './environment.js';

/** A place in a task's log. `seq` 0 means that nothing has been seen; it needs no `gen`. */
export interface Cursor {
  gen: string | null;
  seq: number;
}

export type RunState =
  'queued' | 'running' | 'waiting' | 'succeeded' | 'failed' | 'cancelled' | 'timed_out' | 'interrupted';

export type TaskState = 'idle' | 'queued' | 'running' | 'waiting' | 'paused' | 'error';

export interface Run {
  id: string;
  task: string;
  state: RunState;
  attempt?: number | null;
  trigger?: 'hand' | 'schedule' | 'catchup' | null;
  scheduled_for?: string | null;
  /** The run that this one does once more. */
  retry_of?: string | null;
  /** Set where the server made it because the attempt before it failed: it starts no sooner. */
  not_before?: string | null;
  /** The run that does it once more: only where one run is asked for. */
  retried_by?: string | null;
  queued_at?: string | null;
  started_at?: string | null;
  ended_at?: string | null;
  duration_ms?: number | null;
  first_seq?: number | null;
  last_seq?: number | null;
  reason?: string | null;
  text?: string | null;
  exit?: number | null;
  attention?: { summary: string } | null;
  params?: Record<string, unknown> | null;
  stopping?: { stage: string; since: string } | null;
  /** What it waits for, where one run or a list of runs is asked for; null for one that does not wait. */
  waits?: Waits | null;
}

/** What a run waits for. */
export interface Waits {
  /** Another run of its task, a place of its pool, a place of the server, its time, or a program that asks for it. */
  for: 'run' | 'pool' | 'place' | 'retry' | 'claim';
  pool?: string;
  /** Which it is, from 1, of those that wait for the same. */
  position?: number;
  until?: string;
}

export interface FileError {
  file: string;
  line?: number | null;
  column?: number | null;
  key?: string | null;
  message: string;
}

export interface Schedule {
  cron?: string | null;
  every?: string | null;
  at?: string | null;
  tz?: string | null;
  jitter?: string | null;
  stagger?: boolean | null;
}

export interface Policy {
  overlap?: string | null;
  catchup?: string | null;
  /** Durations are texts as in a task file; `auto` is one period of the schedule. */
  catchup_window?: string | null;
  catchup_limit?: number | null;
  timeout?: string | null;
  /** `none` where there is none. */
  idle_timeout?: string | null;
  queue_limit?: number | null;
  retries?: number | null;
  /** Like `30s..10m`. */
  backoff?: string | null;
  /** Exit codes; empty for any failure. */
  retry_on?: number[] | null;
  on_crash?: 'fail' | 'retry' | null;
  /** 0 for never. */
  pause_after?: number | null;
  concurrency?: string | null;
  /** What it leaves out is what the server says for all tasks. */
  keep?: Keep | null;
  [other: string]: unknown;
}

/** What is kept of a task at most. */
export interface Keep {
  /** Those that are over, with their events. */
  runs?: number | null;
  days?: number | null;
  events?: number | null;
  /** Of events and stored outputs; a number, or a text like `200 MiB` in what is sent. */
  bytes?: number | string | null;
}

export interface Parameter {
  default?: unknown;
  help?: string | null;
}

export interface Task {
  id: string;
  title: string;
  description?: string | null;
  agent?: string | null;
  state: TaskState;
  enabled: boolean;
  source?: 'file' | 'store' | null;
  error?: FileError | null;
  schedule?: Schedule | null;
  schedule_words?: string | null;
  policy?: Policy | null;
  params?: Record<string, Parameter> | null;
  next_at?: string | null;
  /** When that one starts, where it is later: `jitter` and `stagger`. */
  next_planned_for?: string | null;
  /** The newest run, which may be under way, and the newest that is over. */
  last_run?: Run | null;
  last_ended?: Run | null;
  active_runs?: number | null;
  /** What its runs have found and nobody has answered: the newest, and how many there are. */
  attention?: { run: string; summary: string; at?: string | null; count?: number | null } | null;
  gen?: string | null;
  oldest?: number | null;
  head?: number | null;
}

/** One durable event. `kind` is open: what a client does not know it shows as it came. */
export interface TaskEvent {
  task: string;
  run?: string | null;
  seq: number;
  at: string;
  kind: string;
  data: Record<string, unknown>;
}

export interface HeadMark {
  sent: number;
  head: number;
}

export interface Welcome {
  type: 'welcome';
  protocol: number;
  connection: string;
  server: { version: string; boot: string };
  heartbeat_ms?: number;
  limits?: { life_ms?: number; [other: string]: unknown } | null;
  last_close?: { code?: number | string; reason?: string } | number | string | null;
}

export interface Subscribed {
  type: 'subscribed';
  sub: number;
  task: string;
  outcome: 'resumed' | 'reset' | 'not_found';
  gen?: string | null;
  from?: number | null;
  head?: number | null;
  missed?: number | null;
  runs?: Run[] | null;
}

export type ResetReason = 'too_far' | 'from_start' | 'retention' | 'generation' | 'future';

export interface Reset {
  type: 'reset';
  sub: number;
  gen: string;
  why: ResetReason;
  have?: Cursor | number | null;
  oldest: number;
  head: number;
}

export interface Snapshot {
  type: 'snapshot';
  sub: number;
  gen: string;
  seq: number;
  head: number;
  truncated?: boolean | null;
  state: { task?: Task | null; runs?: Run[] | null; calls?: TaskEvent[] | null };
}

export interface EventFrame {
  type: 'event';
  sub: number;
  event: TaskEvent;
}

export interface EventsFrame {
  type: 'events';
  sub: number;
  first: number;
  last: number;
  items: TaskEvent[];
}

export interface CaughtUp {
  type: 'caught_up';
  sub: number;
  seq: number;
}

export interface Delta {
  type: 'delta';
  sub: number;
  run: string;
  key: string;
  offset: number;
  text: string;
}

export interface Heartbeat {
  type: 'heartbeat';
  at: string;
  heads?: Record<string, HeadMark> | null;
}

export interface TasksFrame {
  type: 'tasks';
  rev: number;
  full: boolean;
  items: Task[];
  removed?: string[] | null;
}

export interface Notice {
  type: 'notice';
  code: string;
  text: string;
  since?: string | null;
  over?: boolean | null;
}

export interface Done {
  type: 'done';
  id: string;
  result?: unknown;
}

export interface ErrorFrame {
  type: 'error';
  id?: string | null;
  sub?: number | null;
  code: string;
  message?: string | null;
  retryable?: boolean | null;
}

/** Between the tabs of a browser, never over the wire: how the one that holds the connection is doing. */
export interface HubFrame {
  type: 'hub';
  status: ConnectionStatus;
  /** It lives in a page that nobody sees. */
  hidden?: boolean;
}

export type ServerFrame =
  | Welcome
  | Subscribed
  | Reset
  | Snapshot
  | EventFrame
  | EventsFrame
  | CaughtUp
  | Delta
  | Heartbeat
  | TasksFrame
  | Notice
  | Done
  | ErrorFrame
  | HubFrame;

export interface SubscribeEntry {
  sub: number;
  task: string;
  gen?: string;
  after: number;
}

/** What somebody wants done. Under one id it is done once, however often it is sent. */
export type Command =
  | { op: 'run'; task: string; params?: Record<string, unknown> }
  | { op: 'stop'; run: string }
  | { op: 'message'; task?: string; run?: string; text: string }
  | { op: 'approve' | 'deny'; run: string; request: string };

export type ClientFrame =
  | {
      type: 'hello';
      protocol: 1;
      client: string;
      attempt: number;
      tasks: boolean;
      subscribe: SubscribeEntry[];
      token?: string;
      /** Not for the wire: a task whose stream shall be seen to flow. */
      try?: string | undefined;
    }
  | ({ type: 'command'; id: string } & Command)
  | ({ type: 'subscribe' } & SubscribeEntry)
  | { type: 'unsubscribe'; sub: number }
  | { type: 'tasks' }
  | { type: 'pong'; at: string; visible?: boolean }
  // What is not for the wire: to whatever holds the connection for us.
  | { type: 'probe' | 'retry' | 'bye' }
  | { type: 'wake'; why: WakeUp }
  | { type: 'cancel'; id: string };

/** A page of a task's log, always in ascending order. */
export interface EventPage {
  task: string;
  gen: string;
  oldest: number;
  head: number;
  items: TaskEvent[];
  next: number;
  more: boolean;
}

/** What one text message holds, or null when it is not a frame. */
export function parseFrame(data: unknown): ServerFrame | null {
  try {
    // From another tab it comes as an object; from the wire as text, and nothing else.
    const value: unknown = typeof data === 'string' ? JSON.parse(data) : data;
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return null;
    return typeof (value as { type?: unknown }).type === 'string' ? (value as ServerFrame) : null;
  } catch {
    return null;
  }
}
