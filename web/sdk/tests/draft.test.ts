import { expect, test } from 'vitest';
import { Drafts } from '../src/draft';
import { event } from './world';

const delta = (offset: number, text: string, key = 'k') => ({
  type: 'delta' as const,
  sub: 1,
  run: 'r1',
  key,
  offset,
  text,
});

test('deltas are put together by their offset in Unicode scalars', () => {
  const drafts = new Drafts();
  expect(drafts.apply(delta(0, 'Hi 👋🏽'))).toBe('Hi 👋🏽');
  expect(drafts.apply(delta(5, ' there'))).toBe('Hi 👋🏽 there');
  expect(drafts.entries()).toEqual([['k', 'Hi 👋🏽 there']]);
});

test.each([5, 1, 0])('a delta at %i, where the text is 3 long, is ignored', (offset) => {
  const drafts = new Drafts();
  drafts.apply(delta(0, 'abc'));
  expect(drafts.apply(delta(offset, 'x'))).toBeNull();
  expect(drafts.apply(delta(3, 'd'))).toBe('abcd');
});

test('after a new subscribe the text so far replaces what was lost of it', () => {
  const drafts = new Drafts();
  drafts.apply(delta(0, 'abc'));
  drafts.restart();
  expect(drafts.apply(delta(0, 'abcdef'))).toBe('abcdef');
  expect(drafts.apply(delta(6, 'g'))).toBe('abcdefg');
});

test('the finished event closes its key for good', () => {
  const drafts = new Drafts();
  drafts.apply(delta(0, 'abc'));
  expect(drafts.settle(event(1, 'thought', { key: 'k', text: 'abc' }))).toBe(true);
  expect(drafts.apply(delta(0, 'abc'))).toBeNull();
  expect(drafts.entries()).toEqual([]);
});

test('a run that ends takes its unfinished texts with it, and no others', () => {
  const drafts = new Drafts();
  drafts.apply(delta(0, 'abc'));
  drafts.apply({ ...delta(0, 'def', 'other'), run: 'r2' });
  drafts.settle(event(1, 'status', { state: 'failed' }));
  expect(drafts.entries()).toEqual([['other', 'def']]);
});
