// Times, durations, states and schedules as people say them. Pure.

import type { Command, Policy, Run, RunState, Schedule, Task, TaskState } from '@rejoin/client';

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
  if (text) {
    const sentence = text.charAt(0).toUpperCase() + text.slice(1);
    return schedule.tz && !sentence.includes(schedule.tz) ? `${sentence}${zone}` : sentence;
  }
  if (schedule.every) return `Every ${schedule.every}`;
  if (schedule.cron) return `Cron ${schedule.cron}${zone}`;
  if (schedule.at) return `Once, at ${schedule.at}${zone}`;
  return 'Runs only when asked';
}

/** `1h30m` as a person writes it. */
function spanWords(span: string): string {
  return span
    .replace(/(\d)\s*(ms|s|h|d)\b/g, '$1 $2')
    .replace(/(\d)\s*m\b/g, '$1 min')
    .replace(
      /(\d)\s*([a-z]+?)(?=\d)/g,
      (_, digit: string, unit: string) => `${digit} ${unit === 'm' ? 'min' : unit} `,
    );
}

export function policyWords(policy: Policy | null | undefined): string[] {
  if (!policy) return [];
  const words: string[] = [];
  switch (policy.overlap) {
    case 'skip':
      words.push('A slot is skipped while a run is under way');
      break;
    case 'queue':
      words.push('Runs wait for the one before');
      break;
    case 'replace':
      words.push('A new run stops the one before');
      break;
    case 'allow':
      words.push('Runs may overlap');
      break;
  }
  const { catchup_window: span } = policy;
  const window = span && span !== 'auto' ? ` of the last ${spanWords(span)}` : '';
  switch (policy.catchup) {
    case 'none':
      words.push('Missed slots are not made up');
      break;
    case 'last':
      words.push(`The last missed slot${window} is made up`);
      break;
    case 'all':
      words.push(`Missed slots${window} are made up, the newest ${policy.catchup_limit ?? 10} at most`);
      break;
  }
  if (policy.timeout) words.push(`Ends after ${spanWords(policy.timeout)} at the latest`);
  if (policy.idle_timeout && policy.idle_timeout !== 'none') words.push(`Ends after ${spanWords(policy.idle_timeout)} without output`);
  if (policy.retries) words.push(policy.retries === 1 ? 'One retry' : `Up to ${policy.retries} retries`);
  return words;
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString('en')} ${n === 1 ? one : many}`;
}

export function bytes(n: number): string {
  if (n < 1024) return `${n} bytes`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / 1024 / 1024).toFixed(1)} MiB`;
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
