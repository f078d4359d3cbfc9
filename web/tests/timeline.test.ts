import type { TaskEvent } from '@rejoin/client';
import { describe, expect, test } from 'vitest';
import { Timeline, type Row, type ToolRow } from '../src/timeline';

let seq = 0;
function event(run: string | null, kind: string, data: Record<string, unknown> = {}, at = ++seq): TaskEvent {
  return { task: 'a', run, seq: at, at: '2026-11-20T20:41:07.123456Z', kind, data };
}

function aRun(id: string, end: string | null = 'succeeded'): TaskEvent[] {
  const events = [
    event(id, 'status', { state: 'queued', text: 'Queued', trigger: 'hand' }),
    event(id, 'status', { state: 'started', text: 'Task a: Starting execution...' }),
    event(id, 'thought', { text: 'Hm' }),
    event(id, 'tool_use', { call: 'c1', tool: 'shell', input: { command: 'df' } }),
    event(id, 'tool_output', { call: 'c1', stream: 'stdout', text: 'one\n' }),
    event(id, 'tool_output', { call: 'c1', stream: 'stderr', text: 'two\n' }),
    event(id, 'tool_result', { call: 'c1', tool: 'shell', ok: true, exit: 0 }),
  ];
  if (end !== null) events.push(event(id, 'status', { state: end, text: 'done', duration_ms: 1_234 }));
  return events;
}

const kinds = (rows: Row[]) => rows.map((row) => row.kind);
const seqsOf = (rows: Row[]) =>
  rows
    .flatMap((row) => {
      if (row.kind === 'run') return [];
      if (row.kind !== 'tool') return [row.event.seq];
      return [row.use?.seq, ...row.pieces.map((piece) => piece.seq), row.result?.seq].filter(
        (n) => n !== undefined,
      );
    })
    .sort((a, b) => a - b);

describe('a run', () => {
  test('a call, its output and its result are one block', () => {
    const timeline = new Timeline();
    timeline.append(aRun('r1'));
    expect(kinds(timeline.rows())).toEqual(['run', 'status', 'status', 'thought', 'tool', 'end']);
    const tool = timeline.rows()[4] as ToolRow;
    expect(tool.pieces.map((piece) => piece.stream)).toEqual(['stdout', 'stderr']);
    expect(tool.closed).toBe(true);
  });

  test('every event is in the rows once, whatever came twice', () => {
    const timeline = new Timeline();
    const events = aRun('r1');
    timeline.append(events.slice(0, 5));
    timeline.insert(events.slice(2, 6));
    timeline.append(events.slice(5));
    expect(seqsOf(timeline.rows())).toEqual(events.map((one) => one.seq));
  });

  test('its header says how it stands', () => {
    const timeline = new Timeline();
    timeline.append(aRun('r1', 'failed'));
    expect(timeline.rows()[0]).toMatchObject({
      kind: 'run',
      run: { state: 'failed', trigger: 'hand', duration_ms: 1_234 },
    });
  });

  test('a call without a result is closed when its run ends', () => {
    const timeline = new Timeline();
    const id = 'r1';
    timeline.append([event(id, 'tool_use', { call: 'c9', tool: 'shell', input: {} })]);
    expect((timeline.rows()[1] as ToolRow).closed).toBe(false);
    timeline.append([event(id, 'status', { state: 'cancelled', text: '' })]);
    expect((timeline.rows()[1] as ToolRow).closed).toBe(true);
  });

  test('what is not known is kept as it came', () => {
    const timeline = new Timeline();
    timeline.append([event('r1', 'budget', { left: 3 }), event('r1', 'thought', { no: 'text' })]);
    expect(kinds(timeline.rows())).toEqual(['run', 'raw', 'raw']);
  });

  test('only so much output of a call is held in the page', () => {
    const timeline = new Timeline();
    for (let n = 0; n < 1_000; n += 1) {
      timeline.append([event('r1', 'tool_output', { call: 'c1', stream: 'stdout', text: `${n}\n` })]);
    }
    const tool = timeline.rows()[1] as ToolRow;
    expect(tool.pieces).toHaveLength(400);
    expect(tool.dropped).toBe(600);
  });
});

describe('several runs', () => {
  test('only the last is open at first, and any can be', () => {
    const timeline = new Timeline();
    timeline.append([...aRun('r1'), ...aRun('r2')]);
    expect(kinds(timeline.rows())).toEqual(['run', 'run', 'status', 'status', 'thought', 'tool', 'end']);
    timeline.toggle('r1');
    expect(timeline.rows()).toHaveLength(12);
  });

  test('a first look is at the newest run, with the earlier ones a press away', () => {
    const timeline = new Timeline();
    timeline.append([...aRun('r1'), ...aRun('r2'), ...aRun('r3')]);
    timeline.settle();
    expect(kinds(timeline.rows())).toEqual(['run', 'status', 'status', 'thought', 'tool', 'end']);
    expect(timeline.hidden).toBe(2);
    timeline.showEarly = true;
    expect(kinds(timeline.rows()).filter((kind) => kind === 'run')).toHaveLength(3);
    expect(timeline.hidden).toBe(0);
  });

  test('a hole that is filled between shown runs is shown', () => {
    const timeline = new Timeline();
    const [one, two, three] = [aRun('r1'), aRun('r2'), aRun('r3')];
    timeline.append(one);
    timeline.settle();
    timeline.append(three);
    timeline.insert(two);
    const runs = timeline.rows().flatMap((row) => (row.kind === 'run' ? [row.run.id] : []));
    expect(runs).toEqual(['r1', 'r2', 'r3']);
  });

  test('a run that was being read stays open when the next begins', () => {
    const timeline = new Timeline();
    timeline.append(aRun('r1'));
    timeline.settle();
    timeline.append(aRun('r2'));
    expect(timeline.rows()).toHaveLength(12);
  });

  test('runs that overlap are kept apart', () => {
    const timeline = new Timeline();
    const one = aRun('r1');
    const two = aRun('r2');
    timeline.append(
      [...one, ...two]
        .sort((a, b) => (a.seq % 8) - (b.seq % 8) || a.seq - b.seq)
        .sort((a, b) => a.seq - b.seq),
    );
    timeline.settle();
    const owners = timeline.rows().map((row) => (row.kind === 'run' ? row.run.id : row.run));
    expect(owners.indexOf('r2')).toBeGreaterThan(owners.lastIndexOf('r1'));
  });

  test('older runs that are loaded later come first, folded', () => {
    const timeline = new Timeline();
    const old = aRun('r1');
    timeline.append(aRun('r2'));
    timeline.settle();
    timeline.insert(old);
    expect(kinds(timeline.rows())[0]).toBe('run');
    expect(timeline.hidden).toBe(1);
    timeline.showEarly = true;
    const rows = timeline.rows();
    expect(rows[0]).toMatchObject({ kind: 'run', open: false, run: { id: 'r1', state: 'succeeded' } });
  });

  test('the beginning of a run that is loaded later joins its end', () => {
    const timeline = new Timeline();
    const events = aRun('r1');
    timeline.append(events.slice(5));
    timeline.insert(events.slice(0, 5));
    expect(seqsOf(timeline.rows())).toEqual(events.map((one) => one.seq));
    expect(timeline.rows()[0]).toMatchObject({ run: { state: 'succeeded', trigger: 'hand' } });
  });

  test('what concerns the task itself stands between its runs', () => {
    const timeline = new Timeline();
    timeline.append([...aRun('r1'), event(null, 'status', { state: 'skipped', text: 'x' }), ...aRun('r2')]);
    expect(kinds(timeline.rows()).slice(0, 3)).toEqual(['run', 'status', 'run']);
  });

  test('the view of one run holds nothing else', () => {
    const timeline = new Timeline();
    timeline.append([...aRun('r1'), event(null, 'status', { state: 'paused' }), ...aRun('r2')]);
    timeline.only = 'r1';
    expect(timeline.rows().every((row) => (row.kind === 'run' ? row.run.id : row.run) === 'r1')).toBe(true);
  });
});

// What it takes is no figure of speed: this is for what takes minutes because each event costs what all before it cost.
test('200,000 events are arranged while one waits', { timeout: 20_000 }, () => {
  const timeline = new Timeline();
  for (let batch = 0; batch < 200_000 / 250; batch += 1) {
    timeline.append(Array.from({ length: 250 }, () => event('r1', 'thought', { text: 'x' })));
  }
  expect(timeline.rows().length).toBeGreaterThanOrEqual(200_000);
});
