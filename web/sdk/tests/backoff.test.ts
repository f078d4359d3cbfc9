import { expect, test } from 'vitest';
import { MAX_ATTEMPTS, delayBefore, probeDelay } from '../src/backoff';

const ALMOST_ONE = 0.999999;

test('the first try comes within a second', () => {
  expect(delayBefore(1, 0)).toBe(0);
  expect(delayBefore(1, 0.5)).toBe(500);
  expect(delayBefore(1, ALMOST_ONE)).toBeLessThan(1_000);
});

test('later tries wait under 1, 2, 4, 8, 16 and then always 30 seconds', () => {
  const ceilings = [2, 3, 4, 5, 6, 7, 8, 9, 10].map((attempt) =>
    Math.round((delayBefore(attempt, ALMOST_ONE) ?? 0) / 1000),
  );
  expect(ceilings).toEqual([1, 2, 4, 8, 16, 30, 30, 30, 30]);
});

test('jitter is full: from nothing to the ceiling, also after the cap', () => {
  for (let attempt = 2; attempt <= MAX_ATTEMPTS; attempt += 1) {
    const top = delayBefore(attempt, ALMOST_ONE)!;
    expect(delayBefore(attempt, 0)).toBe(0);
    expect(delayBefore(attempt, 0.25)).toBeCloseTo(top / 4, -1);
  }
});

test('after ten tries there is no next one', () => {
  expect(delayBefore(10, 0.5)).not.toBeNull();
  expect(delayBefore(11, 0.5)).toBeNull();
});

test('a failed client looks again after a minute, a fifth more or less', () => {
  expect(probeDelay(0)).toBe(48_000);
  expect(probeDelay(0.5)).toBe(60_000);
  expect(probeDelay(ALMOST_ONE)).toBeCloseTo(72_000, -1);
});
