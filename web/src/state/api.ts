// The calls of the page, beyond those that the client makes by itself.

import { Api, type PageOf, type Run, type RunState, type Task } from '@rejoin/client';

export interface Upcoming {
  at: string;
  note?: string | null;
}

/** What became of a due time, or of several in a row with one end. */
export interface Slot {
  scheduled_for: string;
  outcome: string;
  run?: string | null;
  run_state?: RunState | null;
  late_ms?: number | null;
  reason?: string | null;
  count?: number | null;
  to?: string | null;
  /** Where it differs from `scheduled_for`. */
  planned_for?: string | null;
}

/** What a run has found, and what a person answered. */
export interface Finding {
  run: string;
  task: string;
  summary: string;
  at: string;
  state: 'open' | 'snoozed' | 'acknowledged';
  acknowledged_at?: string | null;
  snoozed_until?: string | null;
}

/** One moment, or one line for many of a day. */
export interface CalendarItem {
  task: string;
  at?: string;
  note?: string | null;
  from?: string;
  to?: string;
  count?: number;
}

export interface Calendar {
  from: string;
  to: string;
  tz: string;
  items: CalendarItem[];
  left_off: number;
}

/** A way by which people are told. */
export interface Channel {
  name: string;
  kind?: string | null;
  on?: string[] | null;
  quiet?: string | null;
}

/** What was told, to whom, and whether it arrived. */
export interface Delivery {
  id: string;
  at: string;
  channel: string;
  event: string;
  task?: string | null;
  run?: string | null;
  text?: string | null;
  state: string;
  attempts?: number | null;
  last_error?: string | null;
}

/** What the server does for itself from time to time. */
export interface Chore {
  id: string;
  title: string;
  state: 'idle' | 'queued' | 'running' | 'failed' | 'off';
  every?: string | null;
  next_at?: string | null;
  last?: { at: string; duration_ms: number; ok: boolean; result: string } | null;
}

export interface Preview {
  items: Upcoming[];
  text?: string | null;
  words?: string | null;
  zone?: string | null;
}

/** A task as a file has it. */
export type Definition = Record<string, unknown>;

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

const ofTask = (task: string, rest = '') => `/tasks/${encodeURIComponent(task)}${rest}`;
const ofRun = (run: string, rest = '') => `/runs/${encodeURIComponent(run)}${rest}`;

export class PageApi extends Api {
  session = () => this.call<Session>('GET', '/session');
  signIn = (proof: { code: string } | { token: string }) =>
    this.call<void>('POST', '/session', { body: proof });
  devices = () => this.call<PageOf<Device>>('GET', '/session/devices');
  revoke = (device: string) => this.call<void>('DELETE', `/session/devices/${encodeURIComponent(device)}`);
  signOut = () => this.call<void>('DELETE', '/session');

  pause = (task: string) => this.call<Task>('POST', ofTask(task, '/pause'));
  resume = (task: string) => this.call<Task>('POST', ofTask(task, '/resume'));
  next = (task: string, n = 3) => this.call<PageOf<Upcoming>>('GET', ofTask(task, '/next'), { query: { n } });
  runs = (task: string, query: { limit?: number; cursor?: string | null } = {}) =>
    this.call<PageOf<Run>>('GET', ofTask(task, '/runs'), { query });
  run = (run: string) => this.call<Run>('GET', ofRun(run));

  slots = (task: string, limit = 50) =>
    this.call<PageOf<Slot>>('GET', ofTask(task, '/slots'), { query: { limit } });
  calendar = (tz: string | null, days = 7) =>
    this.call<Calendar>('GET', '/calendar', { query: { days, tz } });
  preview = (schedule: Record<string, unknown>, signal: AbortSignal, n = 5) =>
    this.call<Preview>('POST', '/schedule/preview', { body: { ...schedule, n }, signal });

  findings = (state = 'all', limit = 30) =>
    this.call<PageOf<Finding>>('GET', '/attention', { query: { state, limit } });
  acknowledge = (run: string) => this.call<Finding>('POST', ofRun(run, '/acknowledge'));
  snooze = (run: string, span: string) =>
    this.call<Finding>('POST', ofRun(run, '/snooze'), { body: { for: span } });

  channels = () => this.call<PageOf<Channel>>('GET', '/notify');
  deliveries = (cursor: string | null, limit = 30) =>
    this.call<PageOf<Delivery>>('GET', '/notifications', { query: { cursor, limit } });
  testChannel = (channel: string) =>
    this.call<Delivery>('POST', `/notify/${encodeURIComponent(channel)}/test`);

  chores = () => this.call<PageOf<Chore>>('GET', '/housekeeping');
  runChore = (chore: string) => this.call<Chore>('POST', `/housekeeping/${encodeURIComponent(chore)}/run`);

  definition = (task: string) => this.call<Task & { definition: Definition }>('GET', ofTask(task));
  /** Says what is wrong with it, and does nothing. */
  tryOut = (task: string | null, definition: Definition, signal?: AbortSignal) =>
    this.call<{ definition?: Definition }>(
      task === null ? 'POST' : 'PATCH',
      task === null ? '/tasks' : ofTask(task),
      {
        query: { dry_run: true },
        body: definition,
        signal,
      },
    );
  /** With its key it is made once, however often it is sent. */
  add = (definition: Definition, key: string) =>
    this.call<{ task: Task; run: Run | null }>('POST', '/tasks', {
      body: definition,
      headers: { 'Idempotency-Key': key },
    });
  change = (task: string, changes: Definition) => this.call<Task>('PATCH', ofTask(task), { body: changes });
  remove = (task: string) => this.call<void>('DELETE', ofTask(task), { query: { stop: true } });
  exportUrl = (task: string) => this.base + ofTask(task, '/export');

  outputUrl = (run: string, call: string) => this.base + ofRun(run, `/output/${encodeURIComponent(call)}`);
  fullEventUrl = (run: string, seq: number) => this.base + ofRun(run, `/events/${seq}/full`);
}
