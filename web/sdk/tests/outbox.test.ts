// What waits to be sent: kept from before it is tried, over reloads, seen by all tabs and sent by one.

import { expect, test } from 'vitest';
import type { CommandOptions } from '../src/command';
import type { Locks } from '../src/environment';
import type { Command, Run } from '../src/frames';
import { Problem } from '../src/http';
import { Outbox, type OutboxEntry, type Shelf } from '../src/outbox';
import { Lines, LockTable, World, turns } from './world';

const run: Command = { op: 'run', task: 'a', params: { n: 1 } };
const GONE = 12 * 3_600_000;

/** What a browser keeps, for all tabs of it. */
class Kept implements Shelf {
  text = '[]';
  full = false;
  private readonly memory = new Set<string>();
  keeps = (id: string) => !this.memory.has(id);
  async change<T>(action: (entries: Map<string, never>) => T): Promise<T> {
    await Promise.resolve();
    const entries = new Map(JSON.parse(this.text) as [string, never][]);
    const result = action(entries);
    this.text = JSON.stringify([...entries]);
    if (this.full) for (const id of entries.keys()) this.memory.add(id);
    return result;
  }
}

interface Sent {
  command: Command;
  options: CommandOptions;
  done: (result: Run) => void;
  failed: (problem: Problem) => void;
}

/** A browser with its tabs. */
class Browser {
  readonly world = new World();
  readonly kept = new Kept();
  readonly locks = new LockTable();
  readonly lines = new Lines();
  readonly sent: Sent[] = [];
  private uuids = 0;

  tab(options: { locks?: Locks | undefined; maxAgeMs?: number } = {}) {
    const locks = this.locks.tab();
    const command = (what: Command, how: CommandOptions = {}) =>
      new Promise<Run>((done, failed) => {
        this.sent.push({ command: what, options: how, done, failed });
        how.signal?.addEventListener('abort', () => failed(new Problem(0, 'aborted', '')));
      });
    const outbox = new Outbox({
      connection: { command },
      shelf: this.kept,
      ...options,
      environment: {
        ...this.world.environment,
        uuid: () => `id-${(this.uuids += 1)}`,
        line: this.lines.open,
        locks: 'locks' in options ? options.locks : locks,
      },
    });
    const shown: (readonly OutboxEntry[])[] = [];
    outbox.listen((entries) => shown.push(entries));
    return {
      outbox,
      shown,
      states: () => outbox.entries.map(({ state }) => state),
      /** The tab is closed, or its process is killed. */
      die: () => {
        outbox.close();
        locks.die();
      },
    };
  }
}

test('NAM-17: a command is kept from before it is tried', async () => {
  const browser = new Browser();
  const { outbox } = browser.tab();
  await turns();
  const adding = outbox.add(run);
  await Promise.resolve();
  expect(browser.sent).toEqual([]);
  await turns();
  expect(JSON.parse(browser.kept.text)).toMatchObject([['id-1', { id: 'id-1', command: run }]]);
  expect(browser.sent).toMatchObject([{ command: run, options: { id: 'id-1', at: browser.world.time } }]);
  const { id } = await adding;
  expect(id).toBe('id-1');
});

test('NAM-19, SWE-17: it is shown until the server has answered, and then it is gone', async () => {
  const browser = new Browser();
  const { outbox, shown, states } = browser.tab();
  const { result } = await outbox.add(run);
  await turns();
  expect(states()).toEqual(['sending']);
  expect(outbox.entries[0]).toMatchObject({ command: run, at: browser.world.time, tried: true, kept: true });
  browser.sent[0]!.done({ id: 'r1' } as Run);
  await expect(result).resolves.toEqual({ id: 'r1' });
  await turns();
  expect(states()).toEqual([]);
  expect(browser.kept.text).toBe('[]');
  expect(shown.map((entries) => entries.map(({ state }) => state))).toContainEqual(['waiting']);
});

test('SWE-15: what waited is taken up again by the next page, under the same id and with its age', async () => {
  const browser = new Browser();
  const first = browser.tab();
  await first.outbox.add(run);
  await turns();
  first.die();
  browser.world.pass(60_000);
  const second = browser.tab();
  await turns();
  expect(browser.sent).toHaveLength(2);
  expect(browser.sent[1]!.options).toMatchObject({ id: 'id-1', at: browser.world.time - 60_000 });
  expect(second.states()).toEqual(['sending']);
});

test('T-19: two tabs see the same and one of them sends', async () => {
  const browser = new Browser();
  const tabs = [browser.tab(), browser.tab(), browser.tab()];
  await tabs[0]!.outbox.add(run);
  await tabs[1]!.outbox.add({ op: 'stop', run: 'r9' });
  await turns();
  expect(browser.sent.map(({ command }) => command.op)).toEqual(['run', 'stop']);
  for (const tab of tabs) expect(tab.states()).toEqual(['sending', 'sending']);
  for (const { done } of browser.sent) done({ id: 'r1' } as Run);
  await turns();
  expect(browser.sent).toHaveLength(2);
  for (const tab of tabs) expect(tab.states()).toEqual([]);
});

test('T-19: when the tab that sends dies, another sends the same command on', async () => {
  const browser = new Browser();
  const [first, second] = [browser.tab(), browser.tab()];
  await first!.outbox.add(run);
  await turns();
  expect(browser.sent).toHaveLength(1);
  first!.die();
  await turns();
  expect(browser.sent.map(({ options }) => options.id)).toEqual(['id-1', 'id-1']);
  browser.sent[1]!.done({ id: 'r1' } as Run);
  await turns();
  expect(second!.states()).toEqual([]);
});

test('SWE-16, T-19: what is too old is shown and not sent', async () => {
  const browser = new Browser();
  const first = browser.tab();
  await first.outbox.add(run);
  await turns();
  first.die();
  browser.world.pass(GONE);
  const second = browser.tab();
  await turns();
  expect(browser.sent).toHaveLength(1);
  expect(second.states()).toEqual(['expired']);
  await second.outbox.again('id-1');
  await turns();
  expect(browser.sent).toHaveLength(2);
  expect(browser.sent[1]!.options).toMatchObject({ id: 'id-2', at: browser.world.time });
});

test('SWE-16: it expires while the page is open, too, and after a week it is forgotten', async () => {
  const browser = new Browser();
  const { outbox, states } = browser.tab({ maxAgeMs: 60_000 });
  await outbox.add(run);
  await turns();
  browser.world.pass(59_999);
  await turns();
  expect(states()).toEqual(['sending']);
  browser.world.pass(1);
  await turns();
  expect(states()).toEqual(['expired']);
  expect(browser.sent[0]!.options.signal!.aborted).toBe(true);
  browser.world.pass(7 * 24 * 3_600_000);
  browser.tab();
  await turns();
  expect(browser.kept.text).toBe('[]');
});

test('what the server refuses stays with its reason, and can be tried as a new one', async () => {
  const browser = new Browser();
  const { outbox, states } = browser.tab();
  const { result } = await outbox.add(run);
  await turns();
  browser.sent[0]!.failed(new Problem(409, 'conflict', 'It does not go with what is there.'));
  await expect(result).rejects.toMatchObject({ code: 'conflict' });
  await turns();
  expect(states()).toEqual(['refused']);
  expect(outbox.entries[0]!.error).toEqual({
    code: 'conflict',
    message: 'It does not go with what is there.',
  });
  browser.tab();
  await turns();
  expect(browser.sent).toHaveLength(1);
  await outbox.again('id-1');
  await turns();
  expect(browser.sent.map(({ options }) => options.id)).toEqual(['id-1', 'id-2']);
});

test('it can be edited: the new text goes under the same id, whichever tab sends', async () => {
  const browser = new Browser();
  const [first, second] = [browser.tab(), browser.tab()];
  await first!.outbox.add(run);
  await turns();
  const other: Command = { op: 'run', task: 'a', params: { n: 2 } };
  await expect(second!.outbox.edit('id-1', other)).resolves.toBe(true);
  await turns();
  expect(browser.sent[0]!.options.signal!.aborted).toBe(true);
  expect(browser.sent).toHaveLength(2);
  expect(browser.sent[1]).toMatchObject({ command: other, options: { id: 'id-1' } });
  await expect(second!.outbox.edit('not there', other)).resolves.toBe(false);
});

test('it can be taken back, and whether it may have arrived is said', async () => {
  const browser = new Browser();
  const [first, second] = [browser.tab(), browser.tab()];
  const { id, result } = await first!.outbox.add(run);
  await turns();
  await expect(second!.outbox.takeBack(id)).resolves.toBe(false);
  await expect(result).resolves.toBeNull();
  await turns();
  expect(browser.sent[0]!.options.signal!.aborted).toBe(true);
  expect(first!.states()).toEqual([]);
  const late = new Browser();
  late.locks.busy = true;
  const tab = late.tab();
  const waiting = await tab.outbox.add(run);
  expect(tab.states()).toEqual(['waiting']);
  await expect(tab.outbox.takeBack(waiting.id)).resolves.toBe(true);
  late.locks.busy = false;
  await turns();
  expect(late.sent).toEqual([]);
});

test('words to one listener go in the order in which they were said, a stop does not wait', async () => {
  const browser = new Browser();
  const { outbox } = browser.tab();
  await outbox.add({ op: 'message', run: 'r1', text: 'one' });
  await outbox.add({ op: 'message', run: 'r1', text: 'two' });
  await outbox.add({ op: 'message', run: 'r2', text: 'other' });
  await outbox.add({ op: 'stop', run: 'r1' });
  await turns();
  const said = () => browser.sent.map(({ command }) => ('text' in command ? command.text : command.op));
  expect(said()).toEqual(['one', 'other', 'stop']);
  browser.sent[0]!.done({ id: 'r1' } as Run);
  await turns();
  expect(said()).toEqual(['one', 'other', 'stop', 'two']);
});

test('SWE-26: what is kept is bounded in number and size', async () => {
  const browser = new Browser();
  browser.locks.busy = true;
  const { outbox } = browser.tab();
  for (let n = 0; n < 100; n += 1) await outbox.add({ ...run, params: { n } } as Command);
  await expect(outbox.add(run)).rejects.toMatchObject({ code: 'limit' });
  await outbox.clear();
  await expect(outbox.add({ op: 'message', run: 'r', text: 'x'.repeat(60_000) })).rejects.toMatchObject({
    code: 'too_large',
  });
  expect(browser.kept.text).toBe('[]');
});

test('SWE-14: a browser that keeps nothing is said to keep nothing, and it is sent all the same', async () => {
  const browser = new Browser();
  browser.kept.full = true;
  const { outbox } = browser.tab();
  await outbox.add(run);
  await turns();
  expect(outbox.entries).toMatchObject([{ kept: false, state: 'sending' }]);
  expect(browser.sent).toHaveLength(1);
});

test('where tabs cannot agree, each sends what it finds, under the same id', async () => {
  const browser = new Browser();
  const first = browser.tab({ locks: undefined });
  await first.outbox.add(run);
  await turns();
  browser.tab({ locks: undefined });
  await turns();
  expect(browser.sent.map(({ options }) => options.id)).toEqual(['id-1', 'id-1']);
});

test('a page that closes its outbox leaves what waits where it is', async () => {
  const browser = new Browser();
  const first = browser.tab();
  await first.outbox.add(run);
  await turns();
  first.outbox.close();
  await turns();
  expect(JSON.parse(browser.kept.text)).toHaveLength(1);
});
