// Times, durations, states and schedules as people say them. Pure.

import { hasEnded } from '@rejoin/client';
import type { Command, Keep, Policy, Run, RunState, Schedule, Task, TaskState } from '@rejoin/client';

export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return '';
  if (ms < 950) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60)
    return whole % 60 === 0 ? `${minutes} min` : `${minutes} min ${String(whole % 60).padStart(2, '0')} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24)
    return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${String(minutes % 60).padStart(2, '0')} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A span without its small change: 3 min, 2 h, 5 d. */
function rough(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.round(minutes / 60);
  if (hours < 36) return `${hours} h`;
  return `${Math.round(hours / 24)} days`;
}

export function relative(at: string | number, now: number): string {
  const time = typeof at === 'number' ? at : Date.parse(at);
  if (!Number.isFinite(time)) return '';
  const away = time - now;
  if (Math.abs(away) < 1500) return 'now';
  return away > 0 ? `in ${rough(away)}` : `${rough(-away)} ago`;
}

const DAY = new Intl.DateTimeFormat(undefined, { weekday: 'short', day: 'numeric', month: 'short' });
const TIME = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const SECONDS = new Intl.DateTimeFormat(undefined, {
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
  hourCycle: 'h23',
});

export function clock(at: string): string {
  const time = Date.parse(at);
  return Number.isFinite(time) ? SECONDS.format(time) : at;
}

/** The day is left out when it is today's. */
export function absolute(at: string, now: number): string {
  const time = Date.parse(at);
  if (!Number.isFinite(time)) return at;
  const sameDay = new Date(time).toDateString() === new Date(now).toDateString();
  return sameDay ? TIME.format(time) : `${DAY.format(time)}, ${TIME.format(time)}`;
}

const RUN_WORDS: Record<RunState, string> = {
  queued: 'Queued',
  running: 'Running',
  waiting: 'Waiting for approval',
  succeeded: 'Succeeded',
  failed: 'Failed',
  cancelled: 'Stopped',
  timed_out: 'Timed out',
  interrupted: 'Interrupted',
};

const TASK_WORDS: Record<TaskState, string> = {
  idle: 'Idle',
  queued: 'Queued',
  running: 'Running',
  waiting: 'Waiting for approval',
  paused: 'Paused',
  error: 'File has an error',
};

export function runWord(state: RunState): string {
  return RUN_WORDS[state] ?? state;
}

export function taskWord(state: TaskState): string {
  return TASK_WORDS[state] ?? state;
}

/** How a state looks: a small set of tones, each with an icon of its own, so that colour is never the only sign. */
export type Tone = 'live' | 'good' | 'bad' | 'warn' | 'quiet' | 'wait';

export function runTone(state: RunState): Tone {
  switch (state) {
    case 'running':
      return 'live';
    case 'waiting':
      return 'warn';
    case 'queued':
      return 'wait';
    case 'succeeded':
      return 'good';
    case 'failed':
    case 'timed_out':
    case 'interrupted':
      return 'bad';
    default:
      return 'quiet';
  }
}

export function triggerWords(run: Run): string {
  switch (run.trigger) {
    case 'hand':
      return 'started by hand';
    case 'schedule':
      return 'on schedule';
    case 'catchup':
      return 'catching up';
    default:
      return '';
  }
}

export function scheduleWords(schedule: Schedule | null | undefined, text?: string | null): string {
  if (!schedule) return 'Runs only when asked';
  const zone = schedule.tz ? ` (${schedule.tz})` : '';
  if (text) return text.charAt(0).toUpperCase() + text.slice(1);
  if (schedule.every) return `Every ${schedule.every}`;
  if (schedule.cron) return `Cron ${schedule.cron}${zone}`;
  if (schedule.at) return `Once, at ${schedule.at}${zone}`;
  return 'Runs only when asked';
}

/** `1h30m` as a person writes it. */
export function spanWords(span: string): string {
  return span
    .replace(/(\d)\s*(ms|s|h|d)\b/g, '$1 $2')
    .replace(/(\d)\s*m\b/g, '$1 min')
    .replace(
      /(\d)\s*([a-z]+?)(?=\d)/g,
      (_, digit: string, unit: string) => `${digit} ${unit === 'm' ? 'min' : unit} `,
    );
}

function retryWords(policy: Policy): string[] {
  const words: string[] = [];
  const only = (policy.retry_on ?? []).join(' or ');
  if (policy.retries) {
    const times = policy.retries === 1 ? 'once more' : `${policy.retries} times more`;
    const apart = policy.backoff?.split('..').map(spanWords) ?? [];
    const [least, most] = apart;
    const pause =
      least === undefined
        ? ''
        : most === undefined || most === least
          ? `, ${least} ${policy.retries === 1 ? 'later' : 'apart'}`
          : `, ${shortRange(least, most)} ${policy.retries === 1 ? 'later' : 'apart'}`;
    words.push(`Tries ${times}${only && ` after exit ${only}`}${pause}`);
  }
  if (policy.on_crash === 'retry') words.push('Tries again after the server went down under it');
  return words;
}

/** `30 s to 10 min`; `30 to 60 s` where the unit is the same. */
function shortRange(least: string, most: string): string {
  const unit = / [a-z]+$/.exec(least)?.[0];
  return unit !== undefined && most.endsWith(unit) && !least.slice(0, -unit.length).includes(' ')
    ? `${least.slice(0, -unit.length)} to ${most}`
    : `${least} to ${most}`;
}

const ORDINALS = [
  '',
  'first',
  'second',
  'third',
  'fourth',
  'fifth',
  'sixth',
  'seventh',
  'eighth',
  'ninth',
  'tenth',
];

function ordinal(n: number): string {
  const end = n % 100 >= 11 && n % 100 <= 13 ? 'th' : (['th', 'st', 'nd', 'rd'][n % 10] ?? 'th');
  return ORDINALS[n] ?? `${n.toLocaleString('en')}${end}`;
}

/** What a queued run waits for: `Third in pool backup`. */
export function waitWords(run: Run, now: number): string {
  const { waits } = run;
  const place = waits?.position ? ordinal(waits.position) : null;
  const first = (words: string) => words.charAt(0).toUpperCase() + words.slice(1);
  const until = waits?.until ?? run.not_before;
  switch (waits?.for) {
    case 'pool':
      return place === null ? `Waits for the pool ${waits.pool}` : `${first(place)} in pool ${waits.pool}`;
    case 'place':
      return place === null ? 'Waits for a free place' : `${first(place)} in line for a free place`;
    case 'retry':
      return until ? `Tries again ${relative(until, now)}` : 'Waits to try again';
    case 'claim':
      return 'Waits for its program elsewhere to take it';
    case 'run':
      return place !== null && place !== ordinal(1)
        ? `${first(place)} in line behind the run before`
        : 'Waits for the run before it';
    default:
      return '';
  }
}

/** A slot as it is drawn and said: every outcome has a shape of its own beside its colour. */
export type SlotShape =
  | 'ran'
  | 'going'
  | 'failed'
  | 'late'
  | 'skipped'
  | 'coalesced'
  | 'missed'
  | 'disabled'
  | 'pending'
  | 'queued';

export function slotShape(slot: { outcome: string; run_state?: RunState | null }): SlotShape {
  switch (slot.outcome) {
    case 'ran':
    case 'late':
      if (slot.run_state && runTone(slot.run_state) === 'bad') return 'failed';
      if (slot.run_state && runTone(slot.run_state) !== 'good' && !hasEnded(slot.run_state)) return 'going';
      return slot.outcome;
    case 'skipped':
    case 'coalesced':
    case 'missed':
    case 'disabled':
    case 'queued':
      return slot.outcome;
    default:
      return 'pending';
  }
}

export const SLOT_WORDS: Record<SlotShape, string> = {
  ran: 'Ran',
  going: 'Running',
  failed: 'Ran and failed',
  late: 'Ran late',
  skipped: 'Skipped',
  coalesced: 'Merged into one run',
  missed: 'Missed',
  disabled: 'While off',
  pending: 'About to start',
  queued: 'Waits',
};

export const OCCASION_WORDS: Record<string, string> = {
  failed: 'failures',
  recovered: 'recoveries',
  attention: 'findings',
  missed: 'missed times',
  late: 'late starts',
  slow: 'unusually long runs',
  waiting: 'runs that wait for you',
  test: 'a test',
};

export const DELIVERY_WORDS: Record<string, string> = {
  pending: 'On its way',
  sent: 'Sent',
  failed: 'Not delivered',
  held: 'Held in quiet hours',
  dropped: 'Left out',
};

export function deliveryTone(state: string): Tone {
  switch (state) {
    case 'sent':
      return 'good';
    case 'failed':
      return 'bad';
    case 'pending':
    case 'held':
      return 'wait';
    default:
      return 'quiet';
  }
}

export const CHORE_WORDS: Record<string, string> = {
  idle: 'Done',
  queued: 'Queued',
  running: 'Running',
  failed: 'Failed',
  off: 'Off',
};

export function choreTone(state: string): Tone {
  switch (state) {
    case 'idle':
      return 'good';
    case 'running':
      return 'live';
    case 'queued':
      return 'wait';
    case 'failed':
      return 'bad';
    default:
      return 'quiet';
  }
}

/** What happens by itself, said as rules of this task. */
export function policyWords(policy: Policy | null | undefined, isScheduled = true): string[] {
  if (!policy) return [];
  const words: string[] = [];
  switch (policy.overlap) {
    case 'skip':
      words.push('Skips if the last run is still going');
      break;
    case 'queue':
      words.push(`Waits if the last run is still going, at most ${policy.queue_limit ?? 10} in line`);
      break;
    case 'replace':
      words.push('Stops the last run if it is still going');
      break;
    case 'allow':
      words.push('Runs beside the last run if that is still going');
      break;
  }
  const { catchup_window: span } = policy;
  const window = span && span !== 'auto' ? ` of the last ${spanWords(span)}` : '';
  // Without a schedule no time passes that could be missed.
  switch (isScheduled ? policy.catchup : null) {
    case 'none':
      words.push('Does not make up for missed times');
      break;
    case 'last':
      words.push(`Makes up for the last missed time${window}`);
      break;
    case 'all':
      words.push(`Makes up for missed times${window}, the newest ${policy.catchup_limit ?? 10} at most`);
      break;
  }
  if (policy.timeout) words.push(`Ends after ${spanWords(policy.timeout)} at the latest`);
  const { idle_timeout: idle } = policy;
  if (idle && idle !== 'none') words.push(`Ends after ${spanWords(idle)} without a sign of life`);
  words.push(...retryWords(policy));
  if (policy.pause_after)
    words.push(
      policy.pause_after === 1
        ? 'Pauses itself after a failure'
        : `Pauses itself after ${policy.pause_after} failures in a row`,
    );
  if (policy.concurrency) words.push(`Takes a place of the pool ${policy.concurrency}`);
  const kept = keepWords(policy.keep ?? {});
  if (kept !== '') words.push(`Keeps at most ${kept}`);
  return words;
}

/** What it keeps of its past: `30 runs, 7 days and 200.0 MiB`. */
function keepWords({ runs, days, events, bytes: room }: Keep): string {
  const parts: string[] = [];
  if (runs != null) parts.push(count(runs, 'run'));
  if (days != null) parts.push(count(days, 'day'));
  if (events != null) parts.push(count(events, 'event'));
  if (room != null) parts.push(typeof room === 'number' ? bytes(room) : room);
  const last = parts.pop() ?? '';
  return parts.length === 0 ? last : `${parts.join(', ')} and ${last}`;
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString('en')} ${n === 1 ? one : many}`;
}

export function bytes(n: number): string {
  if (n < 1024) return `${n} bytes`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(1)} KiB`;
  if (n < 1024 * 1024 * 1024) return `${(n / 1024 / 1024).toFixed(1)} MiB`;
  return `${(n / 1024 / 1024 / 1024).toFixed(1)} GiB`;
}

/** Nothing starts by itself, because somebody wished so. */
export function isPaused(task: Task): boolean {
  return task.state === 'paused' || (!task.enabled && task.state !== 'error');
}

export function isActive(task: Task): boolean {
  return (
    task.state === 'running' ||
    task.state === 'waiting' ||
    task.state === 'queued' ||
    (task.active_runs ?? 0) > 0
  );
}

/** The run that says how the task fares: the newest that is over. */
export function outcome(task: Task): Run | null {
  return task.last_ended ?? task.last_run ?? null;
}

function failed(task: Task): boolean {
  return task.error != null || (outcome(task) != null && runTone(outcome(task)!.state) === 'bad');
}

/** Attention first, then failed, then running, then the rest by their next time. */
export function rank(task: Task): number {
  if (task.attention) return 0;
  if (task.state === 'waiting') return 0;
  if (failed(task) && !isActive(task)) return 1;
  if (isActive(task)) return 2;
  return 3;
}

export function byUrgency(a: Task, b: Task): number {
  const order = rank(a) - rank(b);
  if (order !== 0) return order;
  const next = (task: Task) => (task.next_at ? Date.parse(task.next_at) : Number.MAX_SAFE_INTEGER);
  return next(a) - next(b) || a.title.localeCompare(b.title);
}

/** What a browser calls itself, as far as a person wants to know: every one of them claims to be several others. */
export function browserWords(agent: string): string {
  const first = (names: [RegExp, string][]) => names.find(([sign]) => sign.test(agent))?.[1];
  const browser = first([
    [/Edg(?:e|A|iOS)?\//, 'Edge'],
    [/OPR\//, 'Opera'],
    [/Firefox\/|FxiOS\//, 'Firefox'],
    [/Chrom(?:e|ium)\/|HeadlessChrome\/|CriOS\//, 'Chrome'],
    [/Safari\//, 'Safari'],
  ]);
  const system = first([
    [/iPhone/, 'iPhone'],
    [/iPad/, 'iPad'],
    [/Android/, 'Android'],
    [/Windows/, 'Windows'],
    [/Macintosh|Mac OS/, 'Mac'],
    [/CrOS/, 'ChromeOS'],
    [/Linux/, 'Linux'],
  ]);
  if (browser === undefined) return agent;
  return system === undefined ? browser : `${browser} on ${system}`;
}

/** What was asked for, e.g. while it waits to be sent. */
export function commandWords(command: Command, tasks: ReadonlyMap<string, Task>): string {
  const title = (task: string | undefined) => `“${tasks.get(task ?? '')?.title ?? task}”`;
  switch (command.op) {
    case 'run':
      return `Run ${title(command.task)}`;
    case 'stop':
      return 'Stop a run';
    case 'message':
      return command.task === undefined ? 'A message to a run' : `A message to ${title(command.task)}`;
    case 'approve':
      return 'An approval';
    case 'deny':
      return 'A denial';
  }
}
