// What a run is, folded from its status events. The same fold as the server's, so both always agree.

import type { Run, TaskEvent } from './index.js';

function text(value: unknown): string | null {
  return typeof value === 'string' ? value : null;
}

function number(value: unknown): number | null {
  return typeof value === 'number' ? value : null;
}

/** The run after one more of its events. Never changes `run`; returns it as it is when nothing is new. */
export function foldRun(run: Run | undefined, event: TaskEvent): Run {
  const base: Run = run ?? { id: event.run ?? '', task: event.task, state: 'queued', first_seq: event.seq };
  if ((base.last_seq ?? 0) >= event.seq) return base;
  if (event.kind !== 'status') return { ...base, last_seq: event.seq };
  const { data } = event;
  const stage = text(data.stage);
  const next: Run = {
    ...base,
    last_seq: event.seq,
    text: text(data.text) || (base.text ?? null),
    stopping: stage === null ? (base.stopping ?? null) : { stage, since: event.at },
  };
  const state = text(data.state);
  switch (state) {
    case 'queued':
      return {
        ...next,
        state,
        queued_at: event.at,
        attempt: number(data.attempt) ?? base.attempt ?? 1,
        trigger: (text(data.trigger) as Run['trigger']) ?? base.trigger ?? null,
        scheduled_for: text(data.scheduled_for) ?? base.scheduled_for ?? null,
        retry_of: text(data.retry_of) ?? base.retry_of ?? null,
        not_before: text(data.not_before) ?? base.not_before ?? null,
        params: (data.params as Run['params']) ?? base.params ?? null,
      };
    case 'started':
      return { ...next, state: 'running', started_at: event.at };
    case 'progress':
      return { ...next, state: base.state === 'waiting' ? 'running' : base.state };
    case 'waiting':
      return { ...next, state };
    case 'succeeded':
    case 'failed':
    case 'cancelled':
    case 'timed_out':
    case 'interrupted':
      return {
        ...next,
        state,
        ended_at: event.at,
        duration_ms: number(data.duration_ms),
        exit: number(data.exit),
        reason: text(data.reason),
        attention: (data.attention as Run['attention']) ?? null,
        stopping: null,
      };
    default:
      return next;
  }
}
