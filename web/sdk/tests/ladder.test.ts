import { expect, test } from 'vitest';
import { Ladder, TRANSPORTS } from '../src/ladder';

test('three failures of a WebSocket lead down, two of a stream, none of pages', () => {
  const ladder = new Ladder(TRANSPORTS);
  expect([1, 2, 3].map(() => ladder.failed(1))).toEqual([false, false, true]);
  ladder.down();
  expect(ladder.current).toBe('sse');
  expect([1, 2].map(() => ladder.failed(1))).toEqual([false, true]);
  ladder.down();
  expect(ladder.current).toBe('pages');
  expect([1, 2, 3, 4].map(() => ladder.failed(2))).toEqual([false, false, false, false]);
});

test("the server's word forgives", () => {
  const ladder = new Ladder(TRANSPORTS);
  ladder.failed(2);
  ladder.confirmed();
  expect(ladder.failed(2)).toBe(false);
  expect(ladder.failed(1)).toBe(true);
});

test('the one way that is allowed is never left', () => {
  const ladder = new Ladder(['websocket']);
  for (let times = 0; times < 10; times += 1) expect(ladder.failed(2)).toBe(false);
  expect(ladder.isBest).toBe(true);
});

test('back at the top one failure is enough for who has been down before', () => {
  const ladder = new Ladder(TRANSPORTS);
  ladder.top();
  expect(ladder.failed(1)).toBe(false);
  ladder.failed(2);
  ladder.down();
  ladder.top();
  expect(ladder.current).toBe('websocket');
  expect(ladder.failed(1)).toBe(true);
});

test('looks for the best way come after 1, 2, 4 and 5 minutes, a fifth more or less', () => {
  const ladder = new Ladder(TRANSPORTS);
  const minutes = (random: number) => ladder.nextLook(random) / 60_000;
  expect([0.5, 0.5, 0.5, 0.5, 0.5].map(minutes)).toEqual([1, 2, 4, 5, 5]);
  expect([minutes(0), minutes(0.999)].map((at) => at.toFixed(1))).toEqual(['4.0', '6.0']);
});
