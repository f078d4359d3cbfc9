import { Problem, type EventPage, type EventQuery, type Snapshot, type TaskEvent } from '../src/index';
import { expect, test } from 'vitest';
import { GEN, event } from './world';
import { TaskLog, type LogSink } from '../src/log';

class Shelf implements LogSink {
  readonly seqs = new Set<number>();
  told: string[] = [];
  cleared(): void {
    this.seqs.clear();
    this.told.push('cleared');
  }
  appended(items: TaskEvent[]): void {
    for (const item of items) this.seqs.add(item.seq);
  }
  inserted(items: TaskEvent[]): void {
    for (const item of items) this.seqs.add(item.seq);
  }
  stated(): void {}
  delta(): void {}
  reset(): void {}
  caughtUp(): void {}
  ended(): void {}
  changed(): void {}
}

/** A server's log of `head` events, paged as the server pages it. */
function history(head: number, oldest = 1, gen = GEN) {
  const queries: EventQuery[] = [];
  const fetch = async (query: EventQuery): Promise<EventPage> => {
    queries.push(query);
    const before = query.before ?? head + 1;
    const first = Math.max(oldest, before - (query.limit ?? 500));
    const items: TaskEvent[] = [];
    for (let seq = first; seq < before; seq += 1) items.push(event(seq));
    return { task: 'a', gen, oldest, head, items, next: items[0]?.seq ?? before, more: first > oldest };
  };
  return { fetch, queries };
}

const range = (first: number, last: number) =>
  Array.from({ length: last - first + 1 }, (_, at) => event(first + at));

function snapshot(seq: number, gen = GEN): Snapshot {
  return { type: 'snapshot', sub: 1, gen, seq, head: seq, state: { runs: [], calls: [] } };
}

const settle = () => new Promise((resolve) => setTimeout(resolve, 5));

test('after too much was missed, what lies between is paged from history and nothing is lacking', async () => {
  const shelf = new Shelf();
  const { fetch, queries } = history(30_000);
  const log = new TaskLog(fetch, shelf);
  log.resumed({ gen: GEN, from: 1, head: 1_000, missed: 1_000, runs: [] });
  log.events(range(1, 1_000));
  const news = { why: 'too_far' as const, had: { gen: GEN, seq: 1_000 }, oldest: 1 };
  log.reset(news);
  log.snapshot(snapshot(30_000), news);
  log.events(range(30_001, 30_010));
  await settle();
  expect(shelf.seqs.size).toBe(30_010);
  expect(log.gaps).toEqual([]);
  expect(queries[0]).toMatchObject({ gen: GEN, before: 30_001 });
  expect(shelf.told).toEqual([]);
});

test('what is no longer kept is not asked for', async () => {
  const shelf = new Shelf();
  const { fetch } = history(9_000, 8_000);
  const log = new TaskLog(fetch, shelf);
  log.resumed({ gen: GEN, from: 1, head: 10, missed: 10, runs: [] });
  log.events(range(1, 10));
  const news = { why: 'retention' as const, had: { gen: GEN, seq: 10 }, oldest: 8_000 };
  log.reset(news);
  log.snapshot(snapshot(9_000), news);
  await settle();
  expect(log.gaps).toEqual([]);
  expect(shelf.seqs.size).toBe(10 + 1_001);
});

test.each(['generation', 'future'] as const)('a reset for %s forgets everything of the old log', (why) => {
  const shelf = new Shelf();
  const { fetch, queries } = history(10);
  const log = new TaskLog(fetch, shelf);
  log.resumed({ gen: GEN, from: 1, head: 5, missed: 5, runs: [] });
  log.events(range(1, 5));
  const news = { why, had: { gen: GEN, seq: 5 }, oldest: 1 };
  log.reset(news);
  log.snapshot(snapshot(10, '0123456789abcdef'), news);
  expect(shelf.told).toEqual(['cleared']);
  expect(shelf.seqs.size).toBe(0);
  expect(log).toMatchObject({ gen: '0123456789abcdef', first: 11, last: 10, gaps: [] });
  expect(queries).toEqual([]);
});

test('a log too long for a first view starts late, and the reader pages back to its beginning', async () => {
  const shelf = new Shelf();
  const { fetch } = history(1_200);
  const log = new TaskLog(fetch, shelf);
  const news = { why: 'from_start' as const, had: { gen: null, seq: 0 }, oldest: 1 };
  log.reset(news);
  log.snapshot(snapshot(1_190), news);
  log.events(range(1_191, 1_200));
  expect(log.hasEarlier).toBe(true);
  for (let pages = 0; pages < 3; pages += 1) await log.loadEarlier();
  expect(log.hasEarlier).toBe(false);
  expect(shelf.seqs.size).toBe(1_200);
});

test('a page that cannot be had is told, and asked for again after the next reconnect', async () => {
  const shelf = new Shelf();
  const good = history(600);
  let broken = true;
  const log = new TaskLog((query) => {
    if (broken) throw new Problem(0, 'unreachable', 'The server could not be reached.');
    return good.fetch(query);
  }, shelf);
  log.resumed({ gen: GEN, from: 1, head: 5, missed: 5, runs: [] });
  log.events(range(1, 5));
  const news = { why: 'too_far' as const, had: { gen: GEN, seq: 5 }, oldest: 1 };
  log.reset(news);
  log.snapshot(snapshot(600), news);
  await settle();
  expect(log.problem?.code).toBe('unreachable');
  broken = false;
  log.resumed({ gen: GEN, from: 601, head: 600, missed: 0, runs: [] });
  await settle();
  expect(log.problem).toBeNull();
  expect(shelf.seqs.size).toBe(600);
});

test('a page of a log that was replaced meanwhile is thrown away', async () => {
  const shelf = new Shelf();
  const { fetch } = history(600);
  const log = new TaskLog(fetch, shelf);
  const news = { why: 'from_start' as const, had: { gen: null, seq: 0 }, oldest: 1 };
  log.reset(news);
  log.snapshot(snapshot(600), news);
  const loading = log.loadEarlier();
  const other = { why: 'generation' as const, had: { gen: GEN, seq: 600 }, oldest: 1 };
  log.reset(other);
  log.snapshot(snapshot(0, '0123456789abcdef'), other);
  await loading;
  expect(shelf.seqs.size).toBe(0);
});
