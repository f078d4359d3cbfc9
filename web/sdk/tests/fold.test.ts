import { hasEnded, type Run, type TaskEvent } from '../src/index';
import { expect, test } from 'vitest';
import { foldRun } from '../src/fold';

let seq = 0;
const status = (data: Record<string, unknown>): TaskEvent => ({
  task: 'a',
  run: 'r1',
  seq: ++seq,
  at: `2026-11-20T20:41:${String(seq).padStart(2, '0')}.000000Z`,
  kind: 'status',
  data,
});

const fold = (...events: TaskEvent[]) => events.reduce<Run | undefined>(foldRun, undefined)!;

test('a run is what its status events say', () => {
  const queued = status({
    state: 'queued',
    text: 'Queued',
    attempt: 2,
    trigger: 'schedule',
    params: { n: 1 },
  });
  const started = status({ state: 'started', text: 'Task a: Starting execution...' });
  const ended = status({
    state: 'failed',
    text: 'Task a failed: no disk',
    reason: 'no disk',
    duration_ms: 7,
    exit: 3,
  });
  expect(fold(queued, started, ended)).toMatchObject({
    id: 'r1',
    state: 'failed',
    attempt: 2,
    trigger: 'schedule',
    params: { n: 1 },
    queued_at: queued.at,
    started_at: started.at,
    ended_at: ended.at,
    duration_ms: 7,
    exit: 3,
    reason: 'no disk',
    first_seq: queued.seq,
    last_seq: ended.seq,
  });
});

test('a stop shows its stage until the run is over', () => {
  const started = status({ state: 'started', text: '' });
  const stage = status({ state: 'progress', text: 'Stopping: SIGINT sent', stage: 'SIGINT' });
  expect(fold(started, stage).stopping).toEqual({ stage: 'SIGINT', since: stage.at });
  expect(fold(started, stage, status({ state: 'cancelled', text: '' })).stopping).toBeNull();
});

test('progress ends the waiting for an approval', () => {
  const waiting = [status({ state: 'started', text: '' }), status({ state: 'waiting', text: '' })];
  expect(fold(...waiting).state).toBe('waiting');
  expect(fold(...waiting, status({ state: 'progress', text: '' })).state).toBe('running');
});

test('an event that was folded already changes nothing', () => {
  const events = [status({ state: 'queued', text: '' }), status({ state: 'started', text: '' })];
  const run = fold(...events);
  expect(foldRun(run, events[0]!)).toBe(run);
});

test('what has ended has ended', () => {
  expect((['queued', 'running', 'waiting'] as const).some(hasEnded)).toBe(false);
  expect((['succeeded', 'failed', 'cancelled', 'timed_out', 'interrupted'] as const).every(hasEnded)).toBe(
    true,
  );
});
