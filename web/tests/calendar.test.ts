import { expect, test } from 'vitest';
import { daysOf } from '../src/calendar';

test('every day is there with what stands on its wall clock, also one in which nothing is due', () => {
  const days = daysOf({
    from: '2026-03-27T13:00:00+01:00',
    to: '2026-03-29T23:59:59+02:00',
    tz: 'Europe/Berlin',
    left_off: 0,
    items: [
      { task: 'often', from: '2026-03-27T14:00:00+01:00', to: '2026-03-27T23:00:00+01:00', count: 10 },
      { task: 'a', at: '2026-03-29T01:30:00+01:00' },
      { task: 'b', at: '2026-03-29T01:30:00+01:00' },
      { task: 'c', at: '2026-03-29T03:00:10+02:00', note: 'clock goes forward' },
    ],
  });
  expect(days.map(({ date }) => date)).toEqual(['2026-03-27', '2026-03-28', '2026-03-29']);
  expect(days[0]!.lines.map(({ task }) => task)).toEqual(['often']);
  expect(days[1]).toEqual({ date: '2026-03-28', lines: [], times: [] });
  expect(days[2]!.times.map(({ time, items }) => [time, ...items.map(({ task }) => task)])).toEqual([
    ['01:30', 'a', 'b'],
    ['03:00:10', 'c'],
  ]);
});
