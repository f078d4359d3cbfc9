import { expect, test } from 'vitest';
import { Drafts } from '../src/draft';

const delta = (offset: number, text: string, key = 'k') => ({
  type: 'delta' as const,
  sub: 1,
  run: 'r',
  key,
  offset,
  text,
});

test('deltas are put together by their offset in Unicode scalars', () => {
  const drafts = new Drafts();
  expect(drafts.apply(delta(0, 'Hi 👋🏽'))).toBe(true);
  expect(drafts.apply(delta(5, ' there'))).toBe(true);
  expect(drafts.entries()).toEqual([['k', 'Hi 👋🏽 there']]);
});

test('a delta that does not fit on is ignored', () => {
  const drafts = new Drafts();
  drafts.apply(delta(0, 'abc'));
  expect(drafts.apply(delta(5, 'x'))).toBe(false);
  expect(drafts.apply(delta(1, 'x'))).toBe(false);
});

test('after a reconnect the text so far replaces what was lost of it', () => {
  const drafts = new Drafts();
  drafts.apply(delta(0, 'abc'));
  expect(drafts.apply(delta(0, 'abcdef'))).toBe(true);
  expect(drafts.entries()).toEqual([['k', 'abcdef']]);
});

test('the finished event closes its key for good', () => {
  const drafts = new Drafts();
  drafts.apply(delta(0, 'abc'));
  expect(drafts.close('k')).toBe(true);
  expect(drafts.apply(delta(0, 'abc'))).toBe(false);
  expect(drafts.entries()).toEqual([]);
});
