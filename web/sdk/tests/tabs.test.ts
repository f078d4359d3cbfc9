// One socket for all tabs of a browser, and what happens when the one that holds it goes.

import { afterEach, expect, test } from 'vitest';
import type { Connection } from '../src/connection';
import type { TasksFrame } from '../src/frames';
import { serveTabs, tabs } from '../src/tabs';
import {
  Diary,
  GEN,
  Lines,
  LockTable,
  World,
  event,
  events,
  heartbeat,
  resetTo,
  resumed,
  turns,
  type FakeSocket,
} from './world';

/** One tab: its own page, clock and sockets. */
interface Tab {
  world: World;
  connection: Connection;
  diary: Diary;
  /** Lines that it has opened, so that it can be frozen. */
  freeze(): void;
  thaw(): void;
  die(): void;
}

class Browser {
  readonly locks = new LockTable();
  readonly lines = new Lines();
  readonly tabs: Tab[] = [];
  readonly told: string[] = [];

  async tab(watch: string | null = 'a', wantsTasks = false): Promise<Tab> {
    const world = new World();
    if (this.tabs[0] !== undefined) world.time = this.tabs[0].world.time;
    const locks = this.locks.tab();
    const own: ReturnType<Lines['open']>[] = [];
    const line = (name: string) => {
      const opened = this.lines.open(name);
      own.push(opened);
      return opened;
    };
    let uuids = 0;
    const name = this.tabs.length + 1;
    const environment = { locks, line, uuid: () => `tab-${name}-${(uuids += 1)}` };
    const connection = world.connection(wantsTasks, { share: tabs(), environment });
    const diary = new Diary();
    if (watch !== null) connection.watch(watch, diary);
    const tab: Tab = {
      world,
      connection,
      diary,
      freeze: () => {
        for (const one of own) this.lines.frozen.add(one);
        world.stopped = true;
      },
      thaw: () => {
        for (const one of own) this.lines.frozen.delete(one);
        world.stopped = false;
      },
      die: () => {
        for (const one of own) one.close();
        world.stopped = true;
        this.tabs.splice(this.tabs.indexOf(tab), 1);
        locks.die();
      },
    };
    this.tabs.push(tab);
    connection.start();
    await turns();
    return tab;
  }

  /** Time passes for all of them, in small steps, so that what they say to each other is heard. */
  async pass(ms: number): Promise<void> {
    for (let passed = 0; passed < ms; passed += 500) {
      for (const { world } of this.tabs) world.pass(Math.min(500, ms - passed));
      await turns();
    }
  }

  get sockets(): FakeSocket[] {
    return this.tabs.flatMap(({ world }) => world.sockets);
  }

  /** The one socket that is open. */
  get socket(): FakeSocket {
    const open = this.sockets.filter(({ readyState }) => readyState < 2);
    expect(open, 'sockets that are open').toHaveLength(1);
    return open[0]!;
  }
}

/** Serves a socket as the server would: answers each subscribe from a log of `head` events. */
function serve(socket: FakeSocket, head: number): void {
  for (const { sub, after } of socket.subscribes) {
    if (socket.answered.has(sub)) continue;
    socket.answered.add(sub);
    socket.say(resumed(sub, after + 1, head));
    if (after < head) socket.say(events(sub, after + 1, head));
    socket.say({ type: 'caught_up', sub, seq: head });
  }
}

const last = (socket: FakeSocket) => socket.subscribes.at(-1)!.sub;

/** Two tabs of one browser, each with what the task has had so far. */
async function twoTabs() {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  serve(browser.socket, 3);
  await turns();
  serve(browser.socket, 3);
  await turns();
  return { browser, first, second };
}

test('several tabs have one socket, and each gets everything from where it is', async () => {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  serve(browser.socket, 3);
  await turns();
  expect(first.diary.seqs).toEqual([1, 2, 3]);
  const second = await browser.tab();
  const third = await browser.tab();
  await turns();
  serve(browser.socket, 3);
  await turns();
  serve(browser.socket, 3);
  await turns();
  expect(browser.sockets).toHaveLength(1);
  browser.socket.say({ type: 'event', sub: last(browser.socket), event: event(4) });
  await turns();
  for (const { diary, connection } of [first, second, third]) {
    expect(diary.seqs).toEqual([1, 2, 3, 4]);
    expect(connection.status.state).toBe('connected');
  }
  expect([first, second, third].map(({ connection }) => connection.status.shared)).toEqual([
    false,
    true,
    true,
  ]);
});

test('what the connection goes through is shown in every tab, and Retry works in each', async () => {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  first.world.socket.drop(4001, '{"code":"draining","retry_ms":8000}');
  await turns();
  for (const { connection, world } of [first, second]) {
    expect(connection.status).toMatchObject({
      state: 'reconnecting',
      closedWith: 'draining',
      retryAt: world.time + 8_000,
    });
  }
  second.connection.retry();
  await turns();
  expect(first.world.sockets).toHaveLength(2);
  browser.socket.welcome();
  await turns();
  expect(second.connection.status).toMatchObject({ state: 'connected', transport: 'websocket' });
  first.world.socket.drop(4500);
  await turns();
  for (const { connection } of [first, second]) {
    expect(connection.status).toMatchObject({ state: 'disconnected', blocked: 'sign_in' });
  }
});

test('when the tab that holds it is closed, another takes over, and nothing is lost or doubled', async () => {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  const third = await browser.tab();
  serve(browser.socket, 5);
  await turns();
  serve(browser.socket, 5);
  await turns();
  serve(browser.socket, 5);
  await turns();
  first.die();
  await turns();
  await browser.pass(1_000);
  browser.socket.welcome();
  await turns();
  expect(browser.socket.subscribes[0]).toMatchObject({ gen: GEN, after: 5 });
  serve(browser.socket, 8);
  await turns();
  serve(browser.socket, 8);
  await turns();
  for (const { diary } of [second, third]) {
    expect(diary.seqs).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(diary.recovered.at(-1)).toBe(3);
  }
  expect(browser.tabs).toHaveLength(2);
});

test('a tab that lets go in order hands over at once', async () => {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  first.connection.stop();
  await browser.pass(1_000);
  expect(first.world.sockets[0]!.readyState).toBeGreaterThan(1);
  expect(second.world.sockets).toHaveLength(1);
  second.world.socket.welcome();
  await turns();
  expect(second.connection.status).toMatchObject({ state: 'connected', shared: false });
  expect(first.connection.status.state).toBe('disconnected');
  first.connection.start();
  await turns();
  expect(first.connection.status).toMatchObject({ state: 'connected', shared: true });
  expect(first.world.sockets).toHaveLength(1);
});

test('one that is frozen is found out by a probe, loses the connection to another, and joins it when it thaws', async () => {
  const { browser, first, second } = await twoTabs();
  first.freeze();
  second.world.wake('visible');
  await browser.pass(6_000);
  expect(second.world.sockets).toHaveLength(1);
  second.world.socket.welcome();
  await turns();
  serve(second.world.socket, 4);
  await turns();
  expect(second.diary.seqs).toEqual([1, 2, 3, 4]);
  first.thaw();
  first.world.wake('resume');
  await browser.pass(4_000);
  serve(second.world.socket, 4);
  await turns();
  expect(first.connection.status).toMatchObject({ state: 'connected', shared: true });
  expect(first.diary.seqs).toEqual([1, 2, 3, 4]);
  expect(browser.socket).toBe(second.world.socket);
});

test('a tab that is seen takes the connection from one that is hidden and has none', async () => {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  first.world.isVisible = false;
  await browser.pass(1_000);
  expect(first.world.socket.readyState).toBe(1);
  // A browser lets timers of hidden pages wait: the other does not wait for them.
  first.world.stopped = true;
  first.world.socket.drop();
  await browser.pass(1_000);
  expect(second.world.sockets).toHaveLength(1);
  second.world.socket.welcome();
  first.world.stopped = false;
  await browser.pass(1_000);
  for (const { connection } of [first, second]) expect(connection.status.state).toBe('connected');
  expect(second.connection.status.shared).toBe(false);
  expect(first.connection.status.shared).toBe(true);
});

test('a wake-up in any tab has the connection looked after', async () => {
  const browser = new Browser();
  await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  serve(browser.socket, 0);
  await turns();
  serve(browser.socket, 0);
  const before = browser.socket.subscribes.length;
  second.world.wake('online');
  await turns();
  expect(browser.socket.subscribes).toHaveLength(before + 1);
  await browser.pass(3_000);
  expect(second.connection.status.state).not.toBe('connected');
});

test('commands of any tab go over the one socket, and the answer to the tab that asked', async () => {
  const browser = new Browser();
  await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  const done = second.connection.command({ op: 'run', task: 'a' }, { id: 'c1' });
  await turns();
  expect(browser.socket.of('command')).toEqual([{ type: 'command', id: 'c1', op: 'run', task: 'a' }]);
  browser.socket.say({ type: 'done', id: 'c1', result: { id: 'r1' } });
  await expect(done).resolves.toEqual({ id: 'r1' });
  const refused = second.connection.command({ op: 'stop', run: 'r1' }, { id: 'c2' });
  refused.catch(() => {});
  await turns();
  browser.socket.say({ type: 'error', id: 'c2', code: 'run_over', message: 'It is over.' });
  await expect(refused).rejects.toMatchObject({ code: 'run_over', message: 'It is over.' });
});

test('a command is not lost with the tab that held the connection', async () => {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  const done = second.connection.command({ op: 'run', task: 'a' }, { id: 'c1' });
  await turns();
  first.die();
  await browser.pass(1_000);
  browser.socket.welcome();
  await turns();
  expect(browser.socket.of('command').map(({ id }) => id)).toEqual(['c1']);
  browser.socket.say({ type: 'done', id: 'c1', result: { id: 'r1' } });
  await expect(done).resolves.toEqual({ id: 'r1' });
});

test('a command that is taken back in one tab is not sent by the other any more', async () => {
  const browser = new Browser();
  const first = await browser.tab();
  browser.socket.welcome();
  const second = await browser.tab();
  const stop = new AbortController();
  const done = second.connection.command({ op: 'run', task: 'a' }, { id: 'c1', signal: stop.signal });
  done.catch(() => {});
  await turns();
  stop.abort();
  await expect(done).rejects.toMatchObject({ code: 'aborted' });
  await turns();
  first.world.socket.drop();
  await browser.pass(2_000);
  browser.socket.welcome();
  await turns();
  expect(browser.socket.of('command')).toEqual([]);
});

test('the list of tasks and the notices are told to every tab, also to one that comes later', async () => {
  const browser = new Browser();
  const lists: TasksFrame[][] = [[], []];
  const notices: string[][] = [[], []];
  const first = await browser.tab(null, true);
  first.connection.listen({
    tasks: (frame) => lists[0]!.push(frame),
    notice: ({ code }) => notices[0]!.push(code),
  });
  browser.socket.welcome();
  await turns();
  const item = (id: string) => ({ id, title: id, state: 'idle' as const, enabled: true });
  browser.socket.say(
    { type: 'notice', code: 'store_not_writable', text: '' },
    { type: 'tasks', rev: 7, full: true, items: [item('a'), item('b')], removed: [] },
    { type: 'tasks', rev: 8, full: false, items: [item('c')], removed: ['a'] },
  );
  await turns();
  const second = await browser.tab(null, false);
  second.connection.listen({
    tasks: (frame) => lists[1]!.push(frame),
    notice: ({ code }) => notices[1]!.push(code),
  });
  second.connection.askForTasks();
  await turns();
  browser.socket.say({ type: 'tasks', rev: 9, full: false, items: [item('d')], removed: [] });
  browser.socket.say({ type: 'notice', code: 'store_not_writable', text: '', over: true });
  await turns();
  const ids = (frames: TasksFrame[]) =>
    frames.map(({ full, items }) => [full, items.map(({ id }) => id).join('')]);
  expect(ids(lists[0]!)).toEqual([
    [true, 'ab'],
    [false, 'c'],
    [false, 'd'],
  ]);
  expect(ids(lists[1]!)).toEqual([
    [true, 'bc'],
    [false, 'd'],
  ]);
  expect(notices[0]).toEqual(['store_not_writable', 'store_not_writable']);
  expect(browser.socket.of('tasks')).toEqual([]);
});

test('a log that was replaced, and a task that is not there, are told to every tab', async () => {
  const { browser, first, second } = await twoTabs();
  browser.socket.say(...resetTo(last(browser.socket), 'generation', 1, 1, 'fedcba9876543210'));
  await turns();
  for (const { diary } of [first, second]) {
    expect(diary.resets).toMatchObject([{ why: 'generation', had: { gen: GEN, seq: 3 } }]);
    expect(diary.told.at(-1)).toBe('snapshot');
  }
  browser.socket.say({ type: 'subscribed', sub: last(browser.socket), task: 'a', outcome: 'not_found' });
  await turns();
  for (const { diary } of [first, second]) expect(diary.told.at(-1)).toBe('ended not_found');
});

test('heartbeats reach every tab with its own position, and a tab that lacks something notices', async () => {
  const { browser, second } = await twoTabs();
  const before = browser.socket.subscribes.length;
  const beat = () => browser.socket.say(heartbeat({ [last(browser.socket)]: { sent: 3, head: 3 } }));
  beat();
  await turns();
  expect(browser.socket.subscribes).toHaveLength(before);
  expect(browser.socket.of('pong')).toHaveLength(1);
  expect(browser.socket.of('pong')[0]).toEqual({ type: 'pong', at: expect.any(String) });
  void second;
});

test('a tab that goes without a word gives its place back, and the server hears that nobody watches', async () => {
  const browser = new Browser();
  await browser.tab('a');
  browser.socket.welcome();
  const second = await browser.tab('b');
  await turns();
  serve(browser.socket, 0);
  second.freeze();
  for (let beats = 0; beats < 8; beats += 1) {
    await browser.pass(17_000);
    const mark = { sent: 0, head: 0 };
    browser.socket.say(
      heartbeat(Object.fromEntries(browser.socket.subscribes.map(({ sub }) => [sub, mark]))),
    );
  }
  expect(browser.socket.of('unsubscribe')).toHaveLength(1);
});

test('where there are no locks each tab has a socket of its own', async () => {
  const world = new World();
  const connection = world.connection(false, {
    share: tabs(),
    environment: { locks: undefined, line: new Lines().open },
  });
  connection.start();
  world.socket.welcome();
  expect(connection.status).toMatchObject({ state: 'connected', shared: false });
});

test('a tab with a token of its own does not share', async () => {
  const browser = new Browser();
  const world = new World();
  const connection = world.connection(false, {
    share: tabs(),
    token: 'secret',
    environment: { locks: browser.locks.tab(), line: browser.lines.open },
  });
  connection.start();
  world.socket.welcome();
  expect(world.socket.sent[0]).toMatchObject({ token: 'secret' });
  expect(browser.locks.holders(/./)).toEqual([]);
});

// A shared worker is a global with ports; two of Node's make the wire between a tab and it.

const globals = globalThis as unknown as { SharedWorker?: unknown; onconnect?: unknown };
afterEach(() => {
  delete globals.SharedWorker;
  delete globals.onconnect;
});

test('a shared worker holds the connection where there is one', async () => {
  const held = new World();
  serveTabs({ environment: held.environment });
  const connect = globals.onconnect as (event: { ports: unknown[] }) => void;
  globals.SharedWorker = class {};
  const worker = () => {
    const { port1, port2 } = new MessageChannel();
    connect({ ports: [port2] });
    return { port: port1 } as unknown as SharedWorker;
  };
  const pages = [0, 1].map(() => {
    const world = new World();
    const diary = new Diary();
    const connection = world.connection(false, { share: tabs({ worker }) });
    connection.watch('a', diary);
    connection.start();
    return { world, diary, connection };
  });
  const until = async (check: () => boolean) => {
    for (let turn = 0; turn < 200 && !check(); turn += 1) await turns();
    expect(check()).toBe(true);
  };
  await until(() => held.sockets.length === 1);
  held.socket.welcome();
  for (const { diary } of pages) {
    await until(() => {
      serve(held.socket, 3);
      return diary.seqs.length === 3;
    });
  }
  expect(held.sockets).toHaveLength(1);
  for (const { world, diary, connection } of pages) {
    expect(world.sockets).toEqual([]);
    expect(diary.seqs).toEqual([1, 2, 3]);
    expect(connection.status).toMatchObject({ state: 'connected', shared: true });
    connection.stop();
  }
  await until(() => held.socket.of('unsubscribe').length === 1);
});
