import { expect, test } from 'vitest';
import { NOTHING_HEARD, checkHeads, followers } from '../src/position';
import { event } from './world';

test('events that follow the position count up to the first gap', () => {
  expect(followers(4, [event(5), event(6), event(7)])).toBe(3);
  expect(followers(4, [event(5), event(7)])).toBe(1);
  expect(followers(4, [event(4), event(5)])).toBe(0);
  expect(followers(4, [])).toBe(0);
});

test('a head that agrees is good', () => {
  expect(checkHeads(7, { sent: 7, head: 7 }, NOTHING_HEARD).good).toBe(true);
});

test('a server that believes to have sent something else is not trusted', () => {
  expect(checkHeads(6, { sent: 7, head: 7 }, NOTHING_HEARD).good).toBe(false);
  expect(checkHeads(8, { sent: 7, head: 9 }, NOTHING_HEARD).good).toBe(false);
});

test('being behind is good once and bad twice at the same place', () => {
  const once = checkHeads(7, { sent: 7, head: 9 }, NOTHING_HEARD);
  expect(once.good).toBe(true);
  expect(checkHeads(7, { sent: 7, head: 12 }, once.memory).good).toBe(false);
  expect(checkHeads(8, { sent: 8, head: 12 }, once.memory).good).toBe(true);
});

test('being forgotten is good once and bad twice', () => {
  const once = checkHeads(7, undefined, NOTHING_HEARD);
  expect(once.good).toBe(true);
  expect(checkHeads(7, undefined, once.memory).good).toBe(false);
});

test('being named again makes up for having been forgotten once', () => {
  const once = checkHeads(7, undefined, NOTHING_HEARD);
  const named = checkHeads(7, { sent: 7, head: 7 }, once.memory);
  expect(checkHeads(7, undefined, named.memory).good).toBe(true);
});
