// A task as a form, and a form as a task: what is typed is text, and the server's reading of it is the only judge. Pure.

import type { Definition } from './state/api';

export interface Field {
  /** Its key in `[policy]`, `[schedule]` or `[notify]`; `keep.runs` is a key of the table in there. */
  key: string;
  label: string;
  help: string;
  kind: 'choice' | 'text' | 'names' | 'number' | 'numbers' | 'size' | 'flag';
  choices?: readonly [value: string, words: string][];
  /** What such a value looks like. */
  like?: string;
  /** It is there only where somebody set it. */
  unset?: boolean;
  /** Another field that it goes with, and the values of that. */
  with?: readonly [key: string, values: readonly string[]];
}

export interface Group {
  title: string;
  fields: readonly Field[];
}

/** Every key of `[policy]`, one line each. A field that is left empty is not sent: the server's default stands. */
export const POLICY: readonly Group[] = [
  {
    title: 'If the last run is still going',
    fields: [
      {
        key: 'overlap',
        label: 'Then',
        help: 'What a due time does while a run of this task is not over.',
        kind: 'choice',
        choices: [
          ['skip', 'skip this time'],
          ['queue', 'wait for its end'],
          ['replace', 'stop it and start anew'],
          ['allow', 'run beside it'],
        ],
      },
      {
        key: 'queue_limit',
        label: 'At most so many wait',
        help: 'What comes when so many wait is skipped.',
        kind: 'number',
        like: '10',
        with: ['overlap', ['queue']],
      },
    ],
  },
  {
    title: 'If the server was down or asleep',
    fields: [
      {
        key: 'catchup',
        label: 'Make up for',
        help: 'Times that passed while nothing could run.',
        kind: 'choice',
        choices: [
          ['last', 'the last missed time'],
          ['all', 'every missed time'],
          ['none', 'nothing'],
        ],
      },
      {
        key: 'catchup_window',
        label: 'Not older than',
        help: '“auto” is one period of the schedule, at most a day.',
        kind: 'text',
        like: 'auto, 6h',
        with: ['catchup', ['', 'last', 'all']],
      },
      {
        key: 'catchup_limit',
        label: 'At most so many at once',
        help: 'The newest of them run.',
        kind: 'number',
        like: '10',
        with: ['catchup', ['all']],
      },
    ],
  },
  {
    title: 'How long a run may take',
    fields: [
      { key: 'timeout', label: 'Ends after', help: 'The whole run.', kind: 'text', like: '20m, 1h30m' },
      {
        key: 'idle_timeout',
        label: 'Ends without a sign of life after',
        help: '“none” waits for ever.',
        kind: 'text',
        like: 'none, 5m',
      },
    ],
  },
  {
    title: 'If a run fails',
    fields: [
      {
        key: 'retries',
        label: 'Try so many times more',
        help: 'A stop is no failure.',
        kind: 'number',
        like: '0',
      },
      {
        key: 'backoff',
        label: 'Apart',
        help: 'The first pause and the longest; each is twice the one before.',
        kind: 'text',
        like: '30s..10m',
      },
      {
        key: 'retry_on',
        label: 'Only after these exit codes',
        help: 'After any failure when it is left empty.',
        kind: 'numbers',
        like: '75, 111',
      },
      {
        key: 'on_crash',
        label: 'If the server went down under it',
        help: 'What a run that was cut off counts as.',
        kind: 'choice',
        choices: [
          ['fail', 'it has failed'],
          ['retry', 'try it again'],
        ],
      },
      {
        key: 'pause_after',
        label: 'Pause after so many failures in a row',
        help: '0 never does.',
        kind: 'number',
        like: '0',
      },
    ],
  },
  {
    title: 'Beside other tasks',
    fields: [
      {
        key: 'concurrency',
        label: 'Takes a place of the pool',
        help: 'One of [pools] in config.toml; none when it is left empty.',
        kind: 'text',
        like: 'backup',
        unset: true,
      },
    ],
  },
  {
    title: 'What is kept of it',
    fields: [
      {
        key: 'keep.runs',
        label: 'At most so many ended runs',
        help: 'The oldest go first. What is left empty here is what [retention] in config.toml says.',
        kind: 'number',
        like: '30',
        unset: true,
      },
      {
        key: 'keep.days',
        label: 'Not longer than so many days',
        help: 'Counted from the end of a run.',
        kind: 'number',
        like: '90',
        unset: true,
      },
      {
        key: 'keep.events',
        label: 'At most so many events',
        help: 'The lines of its timeline, over all of its runs.',
        kind: 'number',
        like: '100000',
        unset: true,
      },
      {
        key: 'keep.bytes',
        label: 'At most so much room',
        help: 'Its events and stored outputs together.',
        kind: 'size',
        like: '200 MiB',
        unset: true,
      },
    ],
  },
];

/** Beside `cron`, `every`, `at` and `tz`. */
export const SCHEDULE: readonly Field[] = [
  {
    key: 'jitter',
    label: 'Later by chance, up to',
    help: 'Drawn anew for each time; nothing when it is left empty.',
    kind: 'text',
    like: '5m',
    unset: true,
  },
  {
    key: 'stagger',
    label: 'Apart from other tasks',
    help: 'Always later by the same, which its name decides.',
    kind: 'flag',
    unset: true,
  },
];

/** Of `[notify]`. */
export const NOTIFY: readonly Field[] = [
  {
    key: 'channels',
    label: 'Told by the channels',
    help: 'Of [notify.channels] in config.toml; those that are for every task when it is left empty.',
    kind: 'names',
    like: 'phone, team',
    unset: true,
  },
];

/**
 * The keys of the policy that a server knows, as it has them for a task that says nothing: what such a task would be
 * says it. Those that may be unset are not in there.
 */
export function known(groups: readonly Group[], defaults: Record<string, unknown> | null): Group[] {
  return groups
    .map((group) => ({
      ...group,
      fields: group.fields.filter(({ key, unset }) => defaults === null || unset === true || key in defaults),
    }))
    .filter(({ fields }) => fields.length > 0);
}

/** What a field stands at when it is left alone. */
export function defaultWords(field: Field, defaults: Record<string, unknown> | null): string {
  const value = defaults?.[field.key];
  if (field.kind === 'choice') return field.choices?.find(([name]) => name === value)?.[1] ?? '';
  if (Array.isArray(value)) return value.join(', ');
  return text(value);
}

export const SCHEDULE_KINDS = [
  ['none', 'Only when asked'],
  ['cron', 'By a cron expression'],
  ['every', 'At a steady distance'],
  ['at', 'Once'],
] as const;
export type ScheduleKind = (typeof SCHEDULE_KINDS)[number][0];

export interface ParamDraft {
  name: string;
  value: string;
  help: string;
  /** Without one it has to be given at each run. */
  required: boolean;
  was: unknown;
}

export interface StepDraft {
  /** The step as it is; what the form does not show of it is kept. */
  was: Record<string, unknown>;
  name: string;
  run: string | null;
  thought: string;
  when: string;
  attention: string;
  summary: string;
  timeout: string;
  on_error: string;
}

export interface Draft {
  id: string;
  title: string;
  description: string;
  agent: string;
  kind: ScheduleKind;
  cron: string;
  every: string;
  at: string;
  tz: string;
  /** Further keys of the schedule, and those of the policy and of who is told. */
  schedule: Record<string, string>;
  policy: Record<string, string>;
  notify: Record<string, string>;
  params: ParamDraft[];
  steps: StepDraft[];
  attention: string;
  summary: string;
  runNow: boolean;
}

const text = (value: unknown): string =>
  value === null || value === undefined ? '' : typeof value === 'string' ? value : JSON.stringify(value);

const table = (value: unknown): Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : {};

const fields = POLICY.flatMap((group) => group.fields);

/** The table within that a key is of, if it is of one, and its name in there. */
function placeOf(key: string): [within: string | null, name: string] {
  const dot = key.indexOf('.');
  return dot < 0 ? [null, key] : [key.slice(0, dot), key.slice(dot + 1)];
}

function typed(of: readonly Field[], values: Record<string, unknown>): Record<string, string> {
  return Object.fromEntries(
    of.map(({ key, kind }) => {
      const [within, name] = placeOf(key);
      const value = (within === null ? values : table(values[within]))[name];
      if ((kind === 'numbers' || kind === 'names') && Array.isArray(value)) return [key, value.join(', ')];
      return [key, kind === 'size' && typeof value === 'number' ? sizeText(value) : text(value)];
    }),
  );
}

export function emptyStep(): StepDraft {
  return {
    was: {},
    name: '',
    run: '',
    thought: '',
    when: '',
    attention: '',
    summary: '',
    timeout: '',
    on_error: '',
  };
}

export function emptyDraft(): Draft {
  return { ...draftOf({}), agent: 'steps', steps: [emptyStep()], runNow: true };
}

export function draftOf(definition: Definition): Draft {
  const schedule = table(definition.schedule);
  const kind = (['cron', 'every', 'at'] as const).find((key) => schedule[key] != null) ?? 'none';
  const steps = Array.isArray(definition.steps) ? definition.steps.map(table) : [];
  return {
    id: '',
    title: text(definition.title),
    description: text(definition.description),
    agent: text(definition.agent) || 'steps',
    kind,
    cron: text(schedule.cron),
    every: text(schedule.every),
    at: text(schedule.at),
    tz: text(schedule.tz),
    schedule: typed(SCHEDULE, schedule),
    policy: typed(fields, table(definition.policy)),
    notify: typed(NOTIFY, table(definition.notify)),
    params: Object.entries(table(definition.params)).map(([name, param]) => {
      const { default: value, help } = table(param);
      return { name, value: text(value), help: text(help), required: value === undefined, was: value };
    }),
    steps: steps.map((was) => ({
      was,
      name: text(was.name),
      run: typeof was.run === 'string' ? was.run : null,
      thought: text(was.thought),
      when: text(was.when),
      attention: text(was.attention),
      summary: text(was.summary),
      timeout: text(was.timeout),
      on_error: text(was.on_error),
    })),
    attention: text(definition.attention),
    summary: text(definition.summary),
    runNow: false,
  };
}

/** A number where it is one; else as it was typed, for the server to say what is wrong with it. */
function numberIn(value: string): unknown {
  return /^-?\d+$/.test(value.trim()) ? Number(value) : value;
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** A number of bytes in the largest unit that it has whole ones of. */
function sizeText(bytes: number): string {
  let unit = 0;
  while (bytes > 0 && bytes % 1024 === 0 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return unit === 0 ? String(bytes) : `${bytes} ${UNITS[unit]}`;
}

/** The number of bytes, as the server gives it; what is written in another way is the server's to read. */
function sizeIn(value: string): unknown {
  const [, digits, unit] = /^\s*(\d+)\s*([KMGT]iB|B)?\s*$/.exec(value) ?? [];
  const bytes = Number(digits) * 1024 ** UNITS.indexOf(unit ?? 'B');
  return Number.isSafeInteger(bytes) ? bytes : value;
}

function meant({ kind }: Field, value: string): unknown {
  if (kind === 'number') return numberIn(value);
  if (kind === 'size') return sizeIn(value);
  if (kind === 'numbers' || kind === 'names') {
    const parts = value.split(/[\s,]+/).filter((one) => one !== '');
    return kind === 'numbers' ? parts.map(numberIn) : parts;
  }
  if (kind === 'flag') return value === 'true';
  return value;
}

/** Fields that are empty stand for the default, but for a list that was empty; keys that no field shows stay as they are. */
function given(of: readonly Field[], values: Record<string, string>, was: Record<string, unknown>) {
  const now: Record<string, unknown> = { ...was };
  for (const field of of) {
    const [within, name] = placeOf(field.key);
    const inner = within === null ? now : { ...table(now[within]) };
    const value = values[field.key] ?? '';
    const before = inner[name];
    const wasEmpty = Array.isArray(before) && before.length === 0;
    if (value.trim() === '') {
      if (!wasEmpty) delete inner[name];
    } else inner[name] = meant(field, value);
    if (within === null) continue;
    if (Object.keys(inner).length > 0) now[within] = inner;
    else delete now[within];
  }
  return now;
}

/** What is asked of the preview, or nothing where there is nothing to be shown yet. */
export function scheduleOf(draft: Draft): Record<string, unknown> | null {
  if (draft.kind === 'none' || draft[draft.kind].trim() === '') return null;
  const schedule: Record<string, unknown> = { [draft.kind]: draft[draft.kind].trim() };
  if (draft.kind !== 'every' && draft.tz.trim() !== '') schedule.tz = draft.tz.trim();
  return given(SCHEDULE, draft.schedule, schedule);
}

function defaultOf({ value, was }: ParamDraft): unknown {
  if (typeof was === 'string') return value;
  return /^(-?\d+(\.\d+)?|true|false)$/.test(value.trim()) ? (JSON.parse(value) as unknown) : value;
}

function stepOf(draft: StepDraft): Record<string, unknown> {
  const step: Record<string, unknown> = { ...draft.was };
  const put = (key: string, value: string) => {
    if (value.trim() === '') delete step[key];
    else step[key] = value;
  };
  put('name', draft.name);
  if (draft.run !== null) step.run = draft.run;
  put('thought', draft.thought);
  put('when', draft.when);
  put('attention', draft.attention);
  put('summary', draft.summary);
  put('timeout', draft.timeout);
  put('on_error', draft.on_error);
  if (typeof step.on_error === 'string') step.on_error = numberIn(step.on_error);
  return step;
}

/** The task as the server takes it; `was` is what it was before, if it was. */
export function definitionOf(draft: Draft, was: Definition = {}): Definition {
  const task: Definition = { ...was, title: draft.title, agent: draft.agent };
  const put = (key: string, value: unknown, isThere: boolean) => {
    if (isThere) task[key] = value;
    else delete task[key];
  };
  put('description', draft.description, draft.description.trim() !== '');
  put('attention', draft.attention, draft.attention.trim() !== '');
  put('summary', draft.summary, draft.summary.trim() !== '');
  // What is chosen and left empty is refused with its reason, and not taken for something else.
  const schedule = scheduleOf(draft) ?? { [draft.kind]: '' };
  const own = ['cron', 'every', 'at', 'tz', ...SCHEDULE.map(({ key }) => key)];
  const others = Object.entries(table(was.schedule)).filter(([key]) => !own.includes(key));
  put('schedule', { ...Object.fromEntries(others), ...schedule }, draft.kind !== 'none');
  const policy = given(fields, draft.policy, table(was.policy));
  put('policy', policy, Object.keys(policy).length > 0);
  const notify = given(NOTIFY, draft.notify, table(was.notify));
  put('notify', notify, Object.keys(notify).length > 0);
  const params = draft.params.map((param) => [
    param.name,
    { ...(param.required ? {} : { default: defaultOf(param) }), ...(param.help ? { help: param.help } : {}) },
  ]);
  put('params', Object.fromEntries(params), params.length > 0);
  put('steps', draft.steps.map(stepOf), draft.agent === 'steps');
  return task;
}

/** JSON with sorted keys: what is the same task is the same text. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, one: unknown) =>
    typeof one === 'object' && one !== null && !Array.isArray(one)
      ? Object.fromEntries(Object.entries(one).sort(([a], [b]) => (a < b ? -1 : 1)))
      : one,
  );
}

/** The members that are others than before; null takes one away. */
export function changesBetween(was: Definition, now: Definition): Definition {
  const changes: Definition = {};
  for (const key of new Set([...Object.keys(was), ...Object.keys(now)])) {
    if (canonical(was[key]) !== canonical(now[key])) changes[key] = now[key] ?? null;
  }
  return changes;
}

export interface Wrong {
  key: string;
  message: string;
}

/** What a refusal says of which field. */
export function wrongIn(body: Record<string, unknown>, message: string): Wrong[] {
  if (Array.isArray(body.errors))
    return body.errors.map(table).map((one) => ({ key: text(one.key), message: text(one.message) }));
  return [{ key: text(body.field), message }];
}

/** The name of the thing on the page that a key of the server is about; the nearest there is. */
export function fieldOf(key: string, there: (name: string) => boolean): string | null {
  let name = key.replace(/\[(\d+)\]/g, '.$1');
  while (name !== '') {
    if (there(name)) return name;
    if (!name.includes('.')) return null;
    name = name.slice(0, name.lastIndexOf('.'));
  }
  return null;
}
