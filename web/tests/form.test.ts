import { expect, test } from 'vitest';
import {
  changesBetween,
  definitionOf,
  draftOf,
  emptyDraft,
  fieldOf,
  POLICY,
  scheduleOf,
  wrongIn,
} from '../src/form';

const WHOLE = {
  title: 'Look after it',
  description: 'All of it.',
  agent: 'steps',
  attention: 'steps.a.ok == false',
  summary: 'It is broken',
  schedule: { cron: '0 3 * * *', tz: 'Europe/Berlin', later: 'what no field shows' },
  policy: {
    overlap: 'queue',
    queue_limit: 4,
    catchup: 'all',
    catchup_window: '6h',
    catchup_limit: 2,
    timeout: '20m',
    keep: { runs: 30, bytes: 209_715_200, later: 'what no field shows' },
    other: ['kept'],
  },
  notify: { channels: ['team', 'phone'], on: ['failed'] },
  params: { limit: { default: 85, help: 'Above this' }, name: { default: '85' }, must: {} },
  secrets: { KEY: { env: 'KEY' } },
  steps: [
    { name: 'a', run: 'true', thought: 'Is it?', on_error: 2, new_key: 1 },
    { name: 'b', http: { url: 'https://example.org' }, on_error: 'continue' },
  ],
};

test('a task that is shown and not changed is the same task', () => {
  expect(definitionOf(draftOf(WHOLE), WHOLE)).toEqual(WHOLE);
  expect(changesBetween(WHOLE, definitionOf(draftOf(WHOLE), WHOLE))).toEqual({});
});

test('only what is changed is sent, and what is emptied goes', () => {
  const draft = draftOf(WHOLE);
  draft.policy.timeout = '  ';
  draft.policy.queue_limit = '7';
  draft.description = '';
  draft.kind = 'none';
  const changes = changesBetween(WHOLE, definitionOf(draft, WHOLE));
  const { timeout, ...policy } = WHOLE.policy;
  expect(timeout).toBeDefined();
  expect(changes).toEqual({ description: null, schedule: null, policy: { ...policy, queue_limit: 7 } });
});

test('what is no number is sent as it was typed, for the server to refuse', () => {
  const draft = emptyDraft();
  draft.policy.queue_limit = 'ten';
  expect(definitionOf(draft).policy).toEqual({ queue_limit: 'ten' });
});

test('a key of a table within the rules is a field, and an empty table goes', () => {
  const draft = draftOf({ policy: { keep: { runs: 30, bytes: 1024 } } });
  expect(draft.policy['keep.runs']).toBe('30');
  draft.policy['keep.runs'] = '';
  draft.policy['keep.days'] = '7';
  draft.policy['keep.bytes'] = '200 MiB';
  const was = { policy: { keep: { runs: 30, bytes: 1024 } } };
  expect(draftOf(was).policy['keep.bytes']).toBe('1 KiB');
  expect(definitionOf(draft, was).policy).toEqual({ keep: { days: 7, bytes: 209_715_200 } });
  draft.policy['keep.bytes'] = '2 MB';
  expect(definitionOf(draft, was).policy).toEqual({ keep: { days: 7, bytes: '2 MB' } });
  // What it is made of is left as it was.
  expect(was).toEqual({ policy: { keep: { runs: 30, bytes: 1024 } } });
  draft.policy['keep.days'] = '';
  draft.policy['keep.bytes'] = '';
  expect(definitionOf(draft, was).policy).toBeUndefined();
  const there = (name: string) => ['policy.keep.runs', 'policy.timeout'].includes(name);
  expect(fieldOf('policy.keep.runs', there)).toBe('policy.keep.runs');
});

test('the channels are names, and a list that was empty stays one', () => {
  const was = { notify: { channels: [], check: 'nightly' }, policy: { retry_on: [] } };
  const draft = draftOf(was);
  expect(draft.notify.channels).toBe('');
  expect(changesBetween(was, { ...was, ...definitionOf(draft, was) })).toEqual({
    title: '',
    agent: 'steps',
    steps: [],
  });
  draft.notify.channels = 'team, phone  chat';
  expect(definitionOf(draft, was).notify).toEqual({ channels: ['team', 'phone', 'chat'], check: 'nightly' });
  const some = { notify: { channels: ['team'] } };
  const emptied = { ...draftOf(some), notify: { channels: ' ' } };
  expect(definitionOf(emptied, some).notify).toBeUndefined();
  const there = (name: string) => name === 'notify.channels';
  expect(fieldOf('notify.channels[1]', there)).toBe('notify.channels');
});

test('a default keeps its kind, and a new one is read as a person means it', () => {
  const draft = draftOf(WHOLE);
  draft.params[0]!.value = '90';
  draft.params[1]!.value = '90';
  draft.params.push(
    { name: 'deep', value: 'true', help: '', required: false, was: undefined },
    { name: 'word', value: 'so so', help: '', required: false, was: undefined },
  );
  expect(definitionOf(draft, WHOLE).params).toEqual({
    limit: { default: 90, help: 'Above this' },
    name: { default: '90' },
    must: {},
    deep: { default: true },
    word: { default: 'so so' },
  });
});

test('a preview is asked for what stands there, and a zone only where it means something', () => {
  const draft = { ...emptyDraft(), tz: 'Europe/Berlin' };
  expect(scheduleOf(draft)).toBeNull();
  expect(scheduleOf({ ...draft, kind: 'cron' })).toBeNull();
  expect(scheduleOf({ ...draft, kind: 'cron', cron: ' 0 3 * * * ' })).toEqual({
    cron: '0 3 * * *',
    tz: 'Europe/Berlin',
  });
  expect(scheduleOf({ ...draft, kind: 'every', every: '30m' })).toEqual({ every: '30m' });
  // Chosen and left empty is for the server to refuse; it is no task without a schedule.
  expect(definitionOf({ ...draft, kind: 'every' }).schedule).toEqual({ every: '' });
});

test('a refusal finds the field it is about, or the nearest there is', () => {
  const there = (name: string) => ['policy.timeout', 'steps.1.run', 'steps.1', 'schedule'].includes(name);
  expect(fieldOf('policy.timeout', there)).toBe('policy.timeout');
  expect(fieldOf('steps[1].run', there)).toBe('steps.1.run');
  expect(fieldOf('steps[1].http.url', there)).toBe('steps.1');
  expect(fieldOf('schedule.jitter', there)).toBe('schedule');
  expect(fieldOf('secrets.KEY', there)).toBeNull();
  expect(fieldOf('', there)).toBeNull();
  expect(wrongIn({ field: 'id' }, 'taken')).toEqual([{ key: 'id', message: 'taken' }]);
  expect(
    wrongIn(
      {
        field: 'a',
        errors: [
          { key: 'a', message: 'x' },
          { key: 'b', message: 'y' },
        ],
      },
      'z',
    ),
  ).toEqual([
    { key: 'a', message: 'x' },
    { key: 'b', message: 'y' },
  ]);
});

test('no key has two fields, and a field goes with one that is there', () => {
  const fields = POLICY.flatMap((group) => group.fields);
  expect(new Set(fields.map((field) => field.key)).size).toBe(fields.length);
  for (const { with: other } of fields) {
    const choices = fields.find((field) => field.key === other?.[0])?.choices?.map(([value]) => value);
    for (const value of other?.[1] ?? []) if (choices) expect(['', ...choices]).toContain(value);
  }
});
