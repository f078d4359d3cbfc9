import type { Policy, Run, Task } from '@rejoin/client';
import { expect, test } from 'vitest';
import { Painter } from '../src/ansi';
import {
  browserWords,
  byUrgency,
  duration,
  policyWords,
  relative,
  scheduleWords,
  slotShape,
  waitWords,
} from '../src/words';

test.each([
  [0, '0 ms'],
  [940, '940 ms'],
  [1_234, '1.2 s'],
  [12_400, '12 s'],
  [60_000, '1 min'],
  [124_000, '2 min 04 s'],
  [3_600_000, '1 h'],
  [5_460_000, '1 h 31 min'],
  [100_000_000, '1 d 3 h'],
])('%i ms are said as %s', (ms, words) => expect(duration(ms)).toBe(words));

test('times near and far are said from now', () => {
  const now = Date.parse('2026-11-20T20:00:00Z');
  expect(relative('2026-11-20T20:00:00.5Z', now)).toBe('now');
  expect(relative('2026-11-20T20:10:00Z', now)).toBe('in 10 min');
  expect(relative('2026-11-20T18:00:00Z', now)).toBe('2 h ago');
  expect(relative('2026-11-25T20:00:00Z', now)).toBe('in 5 days');
  expect(relative('no time', now)).toBe('');
});

test('a schedule is said in words', () => {
  expect(scheduleWords(null)).toBe('Runs only when asked');
  expect(
    scheduleWords({ cron: '0 3 * * 1-5', tz: 'Europe/Berlin' }, 'every weekday at 03:00 in Berlin'),
  ).toBe('Every weekday at 03:00 in Berlin');
  expect(scheduleWords({ cron: '0 3 * * *', tz: 'Europe/Berlin' })).toBe('Cron 0 3 * * * (Europe/Berlin)');
});

test.each<[Policy, string[]]>([
  [
    { overlap: 'skip', catchup: 'last', catchup_window: '6h', timeout: '1h30m' },
    [
      'Skips if the last run is still going',
      'Makes up for the last missed time of the last 6 h',
      'Ends after 1 h 30 min at the latest',
    ],
  ],
  [
    { overlap: 'replace', catchup: 'all', catchup_window: 'auto', catchup_limit: 3 },
    ['Stops the last run if it is still going', 'Makes up for missed times, the newest 3 at most'],
  ],
  [{ overlap: 'queue', queue_limit: 4 }, ['Waits if the last run is still going, at most 4 in line']],
  [{ retries: 3, backoff: '30s..10m' }, ['Tries 3 times more, 30 s to 10 min apart']],
  [
    { retries: 3, backoff: '30s..60s', retry_on: [75] },
    ['Tries 3 times more after exit 75, 30 to 60 s apart'],
  ],
  [{ retries: 1, backoff: '5m..5m', retry_on: [] }, ['Tries once more, 5 min later']],
  [{ retries: 0, backoff: '30s..10m', idle_timeout: 'none', pause_after: 0, on_crash: 'fail' }, []],
  [
    { idle_timeout: '5m', pause_after: 3, on_crash: 'retry', concurrency: 'backup' },
    [
      'Ends after 5 min without a sign of life',
      'Tries again after the server went down under it',
      'Pauses itself after 3 failures in a row',
      'Takes a place of the pool backup',
    ],
  ],
  [{ keep: { runs: 1 } }, ['Keeps at most 1 run']],
  [{ keep: { days: 7, bytes: 200 * 1024 * 1024 } }, ['Keeps at most 7 days and 200.0 MiB']],
  [
    { keep: { runs: 30, days: 1, events: 100_000, bytes: 2 ** 31 } },
    ['Keeps at most 30 runs, 1 day, 100,000 events and 2.0 GiB'],
  ],
  [{ keep: {} }, []],
])('the policy %j is said in words', (policy, words) => expect(policyWords(policy)).toEqual(words));

test('a place in a queue is said in words', () => {
  const now = Date.parse('2026-11-20T20:00:00Z');
  const said = (more: Partial<Run>) => waitWords({ id: 'r', task: 't', state: 'queued', ...more }, now);
  expect(said({ waits: { for: 'pool', pool: 'backup', position: 3 } })).toBe('Third in pool backup');
  expect(said({ waits: { for: 'place', position: 21 } })).toBe('21st in line for a free place');
  expect(said({ waits: { for: 'place', position: 12 } })).toBe('12th in line for a free place');
  expect(said({ waits: { for: 'run', position: 1 } })).toBe('Waits for the run before it');
  expect(said({ waits: { for: 'run', position: 2 } })).toBe('Second in line behind the run before');
  expect(said({ waits: { for: 'retry', until: '2026-11-20T20:10:00Z' } })).toBe('Tries again in 10 min');
  expect(said({})).toBe('');
});

test('a slot that ran shows how its run fares', () => {
  expect(slotShape({ outcome: 'ran', run_state: 'succeeded' })).toBe('ran');
  expect(slotShape({ outcome: 'ran', run_state: null })).toBe('ran');
  expect(slotShape({ outcome: 'late', run_state: 'succeeded' })).toBe('late');
  expect(slotShape({ outcome: 'late', run_state: 'timed_out' })).toBe('failed');
  expect(slotShape({ outcome: 'ran', run_state: 'running' })).toBe('going');
  expect(slotShape({ outcome: 'coalesced', run_state: 'failed' })).toBe('coalesced');
  expect(slotShape({ outcome: 'new to this page' })).toBe('pending');
});

test('attention comes first, then what failed, then what runs, then the rest by its next time', () => {
  const task = (id: string, more: Partial<Task>): Task => ({
    id,
    title: id,
    state: 'idle',
    enabled: true,
    ...more,
  });
  const tasks = [
    task('later', { next_at: '2026-11-22T00:00:00Z' }),
    task('never', {}),
    task('soon', { next_at: '2026-11-21T00:00:00Z' }),
    task('runs', { state: 'running' }),
    task('failed', { last_run: { id: 'r', task: 'failed', state: 'failed' } }),
    task('attention', { attention: { run: 'r', summary: 'x' } }),
  ];
  expect(tasks.sort(byUrgency).map((one) => one.id)).toEqual([
    'attention',
    'failed',
    'runs',
    'soon',
    'later',
    'never',
  ]);
});

test('output is escaped, and its colours are class names only', () => {
  const painted = new Painter().paint('\u001b[31m<b onclick="x">red</b>\u001b[0m & plain');
  expect(painted).toBe(
    '<span class="ansi-red-fg">&lt;b onclick=&quot;x&quot;&gt;red&lt;/b&gt;</span> &amp; plain',
  );
});

test('colours without a class leave no inline style behind', () => {
  expect(new Painter().paint('\u001b[38;2;1;2;3mtrue\u001b[0m \u001b[1mbold\u001b[0m')).not.toContain(
    'style',
  );
});

test('output makes no links', () => {
  const painted = new Painter().paint('\u001b]8;;https://example.org\u0007click\u001b]8;;\u0007');
  expect(painted).not.toContain('href');
});

test('a colour goes on from one piece of output to the next', () => {
  const painter = new Painter();
  painter.paint('\u001b[32mgreen');
  expect(painter.paint('still')).toContain('ansi-green-fg');
});

test.each([
  [
    'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36',
    'Chrome on Linux',
  ],
  [
    'Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Version/18.0 Mobile/15E148 Safari/604.1',
    'Safari on iPhone',
  ],
  [
    'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0',
    'Edge on Windows',
  ],
  ['curl/8.5.0', 'curl/8.5.0'],
])('the browser %s is %s', (agent, words) => expect(browserWords(agent)).toBe(words));
