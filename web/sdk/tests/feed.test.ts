// The way down from a WebSocket to streams and pages, and up again.

import { expect, test } from 'vitest';
import type { ConnectionOptions } from '../src/connection';
import {
  Calls,
  Diary,
  GEN,
  Stream,
  World,
  event,
  events,
  heartbeat,
  json,
  pageOf,
  problem,
  resetTo,
  resumed,
  turns,
} from './world';

/** A server whose calls work; `head` events in the log of task a. */
function served(options: ConnectionOptions = {}) {
  const world = new World();
  const calls = new Calls();
  const log = { head: 3, gen: GEN, oldest: 1 };
  const streams: Stream[] = [];
  calls.on(/^\/status/, () => json({ version: '0.1.0' }));
  calls.on(/^\/tasks$/, () =>
    json({ items: [{ id: 'a', title: 'A', state: 'idle', enabled: true, gen: log.gen }] }),
  );
  calls.on(/^\/tasks\/\w+\/events/, (path, { headers, signal }) => {
    if ((headers as Record<string, string>).Accept !== 'text/event-stream') {
      return pageOf(path.split('?')[1] ?? '', log.head, log.gen, log.oldest);
    }
    const stream = new Stream();
    stream.stopBy(signal);
    streams.push(stream);
    return stream.response;
  });
  world.answer = calls.fetch;
  const told: string[] = [];
  const connection = world.connection(false, { log: (text) => told.push(text), ...options });
  const diary = new Diary();
  const subscription = connection.watch('a', diary);
  /** The network lets no WebSocket through. */
  const block = async () => {
    for (let tries = 0; tries < 3; tries += 1) {
      if (world.socket.readyState !== 0) world.untilNextSocket();
      world.socket.drop(1006);
      await turns();
    }
  };
  return { world, calls, log, streams, connection, diary, subscription, told, block };
}

const opened = (stream: Stream, from: number, head: number) => stream.say(resumed(0, from, head));

test('where WebSockets are blocked and calls are not, a stream is taken, and goes on from the position', async () => {
  const { connection, diary, subscription, streams, block, calls } = served();
  connection.start();
  await block();
  await turns();
  expect(streams).toHaveLength(1);
  expect(connection.status.state).toBe('connecting');
  opened(streams[0]!, 1, 3);
  await turns();
  expect(connection.status).toMatchObject({
    state: 'connected',
    transport: 'sse',
    server: { version: '0.1.0' },
  });
  streams[0]!.say(events(0, 1, 3), { type: 'caught_up', seq: 3 }, { type: 'event', event: event(4) });
  await turns();
  expect(diary.told).toEqual(['resumed', 'events', 'caught_up', 'events']);
  expect(diary.seqs).toEqual([1, 2, 3, 4]);
  expect(subscription.position).toEqual({ gen: GEN, seq: 4 });
  expect(calls.of(/^\/tasks\/a\/events/)).toHaveLength(1);
});

test('one or two failures are no reason to go down, nor are any while the server does not answer at all', async () => {
  const { world, connection, calls, streams } = served();
  connection.start();
  world.socket.drop(1006);
  world.untilNextSocket();
  world.socket.drop(1006);
  await turns();
  expect(calls.asked).toEqual([]);
  calls.up = false;
  for (let tries = 0; tries < 6; tries += 1) {
    world.untilNextSocket();
    world.socket.drop(1006);
    await turns();
  }
  expect(streams).toEqual([]);
  expect(calls.of(/status/).length).toBeGreaterThan(0);
  calls.up = true;
  world.untilNextSocket();
  world.socket.drop(1006);
  await turns();
  await turns();
  expect(streams).toHaveLength(1);
});

test("a page that signs people in to somebody's network is not taken for the server", async () => {
  const { calls, block, connection, streams } = served();
  calls.on(/^\/status/, () => new Response('<html>Welcome to the hotel</html>'));
  connection.start();
  await block();
  await turns();
  expect(streams).toEqual([]);
  expect(calls.of(/events/)).toEqual([]);
});

test('a WebSocket that swallows everything is given up after two deadlines', async () => {
  const { world, connection, streams } = served();
  connection.start();
  for (let tries = 0; tries < 2; tries += 1) {
    if (world.socket.readyState !== 0) world.untilNextSocket();
    world.socket.open();
    world.pass(10_000);
    await turns();
  }
  await turns();
  expect(streams).toHaveLength(1);
});

test("a close in the server's own words is no reason to take another way", async () => {
  const { world, connection, calls } = served();
  connection.start();
  for (let tries = 0; tries < 5; tries += 1) {
    world.socket.drop(4104, '{"code":"connection_limit"}');
    world.untilNextSocket();
    await turns();
  }
  expect(calls.asked).toEqual([]);
});

test('without a WebSocket at all a stream is the first way', async () => {
  const { world, connection, streams } = served({ environment: { openSocket: undefined } });
  connection.start();
  await turns();
  expect(streams).toHaveLength(1);
  expect(world.sockets).toEqual([]);
});

test('a stream resumes by the id of its last event, which wins over the address', async () => {
  const { world, connection, streams, calls, diary } = served({ transports: ['sse', 'pages'] });
  connection.start();
  await turns();
  opened(streams[0]!, 1, 3);
  streams[0]!.say(events(0, 1, 3));
  await turns();
  streams[0]!.end();
  await turns();
  expect(connection.status.state).toBe('reconnecting');
  world.pass(1_000);
  await turns();
  expect(calls.of(/events/).at(-1)!.headers).toMatchObject({ 'Last-Event-ID': `${GEN}.3` });
  expect(calls.of(/events/).at(-1)!.path).toBe('/tasks/a/events');
  opened(streams[1]!, 4, 5);
  streams[1]!.say(events(0, 4, 5), { type: 'caught_up', seq: 5 });
  await turns();
  expect(diary.seqs).toEqual([1, 2, 3, 4, 5]);
  expect(diary.recovered.at(-1)).toBe(2);
});

test.each(['too_far', 'retention', 'generation'])('a stream may be reset: %s', async (why) => {
  const { connection, streams, diary, subscription } = served({ transports: ['sse'] });
  connection.start();
  await turns();
  streams[0]!.say(...resetTo(0, why, 50, 52, 'fedcba9876543210'), events(0, 51, 52), {
    type: 'caught_up',
    seq: 52,
  });
  await turns();
  expect(diary.told).toEqual(['reset', 'snapshot', 'events', 'caught_up']);
  expect(subscription.position).toEqual({ gen: 'fedcba9876543210', seq: 52 });
});

test('a heartbeat of a stream that disagrees about the position makes the client subscribe again', async () => {
  const { connection, streams } = served({ transports: ['sse'] });
  connection.start();
  await turns();
  opened(streams[0]!, 1, 3);
  streams[0]!.say(events(0, 1, 3), { ...heartbeat(), heads: { sent: 3, head: 3 } });
  await turns();
  expect(streams).toHaveLength(1);
  streams[0]!.say({ ...heartbeat(), heads: { sent: 4, head: 4 } });
  await turns();
  expect(streams).toHaveLength(2);
  expect(streams[0]!.cancelled).toBe(true);
});

test('a stream that the server ends says when to come back, and why', async () => {
  const { world, connection, streams } = served({ transports: ['sse'] });
  connection.start();
  await turns();
  opened(streams[0]!, 1, 0);
  streams[0]!.write('retry: 8000\nevent: close\ndata: {"code":"draining","retry_ms":8000}\n\n');
  await turns();
  expect(connection.status).toMatchObject({ closedWith: 'draining', retryAt: world.time + 8_000 });
});

test('a credential that expired ends a stream as it ends a socket', async () => {
  const { connection, streams } = served({ transports: ['sse'] });
  connection.start();
  await turns();
  opened(streams[0]!, 1, 0);
  streams[0]!.say({ type: 'close', code: 'expired' });
  await turns();
  expect(connection.status).toMatchObject({ state: 'disconnected', blocked: 'expired' });
});

test('a call that is refused for its credential asks for a sign-in', async () => {
  const { connection, calls } = served({ transports: ['sse'] });
  calls.on(/^\/status/, () => problem(401, 'unauthenticated'));
  connection.start();
  await turns();
  expect(connection.status).toMatchObject({ state: 'disconnected', blocked: 'sign_in' });
});

test('35 seconds of silence are the end of a stream as well', async () => {
  const { world, connection, streams } = served({ transports: ['sse'] });
  connection.start();
  await turns();
  opened(streams[0]!, 1, 0);
  await turns();
  world.pass(34_999);
  expect(connection.status.state).toBe('connected');
  world.pass(1);
  await turns();
  expect(connection.status.state).toBe('reconnecting');
  expect(streams[0]!.cancelled).toBe(true);
});

test('a stream that is held back by something between is given up for pages', async () => {
  const { world, connection, diary, streams } = served({ transports: ['sse', 'pages'] });
  connection.start();
  await turns();
  expect(streams).toHaveLength(1);
  world.pass(10_000);
  await turns();
  await turns();
  expect(connection.status).toMatchObject({ state: 'connected', transport: 'pages' });
  expect(diary.seqs).toEqual([1, 2, 3]);
});

test.each([
  ['406', () => problem(406, 'not_acceptable')],
  ['a page of somebody else', () => new Response('<html>', { headers: { 'Content-Type': 'text/html' } })],
])('where there are no streams (%s) it is pages at once', async (_, answer) => {
  const { connection, calls, diary, log } = served({ transports: ['sse', 'pages'] });
  calls.on(/events/, (path, { headers }) =>
    (headers as Record<string, string>).Accept === 'text/event-stream'
      ? answer()
      : pageOf(path.split('?')[1]!, log.head),
  );
  connection.start();
  await turns();
  await turns();
  expect(connection.status.transport).toBe('pages');
  expect(diary.told).toEqual(['resumed', 'events', 'caught_up']);
});

test('pages bring what is new every three seconds, and less often to a page that nobody sees', async () => {
  const { world, connection, diary, log, calls } = served({ transports: ['pages'] });
  connection.start();
  await turns();
  expect(diary.seqs).toEqual([1, 2, 3]);
  log.head = 5;
  world.pass(3_000);
  await turns();
  expect(diary.seqs).toEqual([1, 2, 3, 4, 5]);
  world.isVisible = false;
  world.pass(3_000);
  await turns();
  const before = calls.of(/events/).length;
  world.pass(15_000);
  await turns();
  expect(calls.of(/events/)).toHaveLength(before);
  world.pass(3_000);
  await turns();
  expect(calls.of(/events/)).toHaveLength(before + 1);
});

test('only `more` says whether there is more', async () => {
  const { connection, diary, calls, log } = served({ transports: ['pages'] });
  log.head = 1_200;
  calls.on(/events/, (path) => pageOf(path.split('?')[1]!, log.head, GEN, 1, 100));
  connection.start();
  for (let turn = 0; turn < 10; turn += 1) await turns();
  expect(diary.seqs).toHaveLength(1_200);
  expect(diary.told.at(-1)).toBe('caught_up');
});

test('a log that was replaced, lost its beginning or has moved too far is said over pages too', async () => {
  const { world, connection, diary, log, subscription } = served({ transports: ['pages'] });
  connection.start();
  await turns();
  log.gen = 'fedcba9876543210';
  log.head = 2;
  world.pass(3_000);
  await turns();
  expect(diary.resets.at(-1)).toMatchObject({ why: 'generation', had: { gen: GEN, seq: 3 } });
  expect(subscription.position).toEqual({ gen: 'fedcba9876543210', seq: 2 });
  log.head = 90;
  log.oldest = 80;
  world.pass(3_000);
  await turns();
  expect(diary.resets.at(-1)).toMatchObject({ why: 'retention', oldest: 80 });
  expect(subscription.position.seq).toBe(90);
  log.head = 40;
  world.pass(3_000);
  await turns();
  expect(diary.resets.at(-1)!.why).toBe('future');
  log.head = 91;
  log.oldest = 1;
  world.pass(3_000);
  await turns();
  expect(diary.seqs.at(-1)).toBe(41 + 50);
});

test('who has nothing of a very long log begins at its end, and is told', async () => {
  const { connection, diary, log, subscription } = served({ transports: ['pages'] });
  log.head = 20_001;
  connection.start();
  await turns();
  expect(diary.told).toEqual(['reset', 'snapshot', 'caught_up']);
  expect(diary.resets[0]!.why).toBe('from_start');
  expect(subscription.position.seq).toBe(20_001);
});

test('20,000 missed events are still replayed', async () => {
  const { connection, diary, log } = served({ transports: ['pages'] });
  log.head = 20_000;
  connection.start();
  for (let turn = 0; turn < 30; turn += 1) await turns();
  expect(diary.told[0]).toBe('resumed');
  expect(diary.seqs).toHaveLength(20_000);
});

test('a task that is not there ends its subscription and not the others', async () => {
  const { connection, calls, diary } = served({ transports: ['sse', 'pages'] });
  calls.on(/^\/tasks\/gone\//, () => problem(404, 'not_found'));
  const gone = new Diary();
  connection.watch('gone', gone);
  connection.start();
  await turns();
  await turns();
  expect(gone.told).toEqual(['ended not_found']);
  expect(diary.told).toContain('caught_up');
  expect(connection.status.state).toBe('connected');
});

test('the task that is looked at last has the stream, the others go by pages', async () => {
  const { world, connection, streams, diary, log } = served({ transports: ['sse'] });
  connection.start();
  await turns();
  opened(streams[0]!, 1, 3);
  streams[0]!.say(events(0, 1, 3));
  await turns();
  const other = new Diary();
  connection.watch('b', other);
  await turns();
  expect(streams).toHaveLength(2);
  expect(streams[0]!.cancelled).toBe(true);
  streams[1]!.say({ ...resumed(0, 1, 0), task: 'b' });
  log.head = 4;
  world.pass(3_000);
  await turns();
  expect(diary.seqs).toEqual([1, 2, 3, 4]);
  expect(other.told).toEqual(['resumed']);
  streams[1]!.say({ type: 'heartbeat', at: '2026-11-20T20:41:07.123456Z', heads: { sent: 0, head: 0 } });
  await turns();
  expect(streams).toHaveLength(2);
});

test('the list of tasks is asked for while there is no socket, and told when it changes', async () => {
  const { world, calls } = served();
  const connection = world.connection(true, { transports: ['pages'] });
  const lists: string[][] = [];
  connection.listen({ tasks: ({ items, full }) => void (full && lists.push(items.map(({ id }) => id))) });
  connection.start();
  await turns();
  world.pass(5_000);
  await turns();
  expect(lists).toEqual([['a']]);
  calls.on(/^\/tasks(\?|$)/, (path) =>
    path.includes('cursor') ? json({ items: [{ id: 'b' }] }) : json({ items: [{ id: 'a' }], next: 'a' }),
  );
  world.pass(5_000);
  await turns();
  expect(lists).toEqual([['a'], ['a', 'b']]);
});

test('waking up asks by a call, and a call that gets no answer in three seconds is the end of it', async () => {
  const { world, connection, calls } = served({ transports: ['pages'] });
  connection.start();
  await turns();
  const before = calls.of(/status/).length;
  world.wake('visible');
  await turns();
  expect(calls.of(/status/)).toHaveLength(before + 1);
  world.pass(3_000);
  expect(connection.status.state).toBe('connected');
  calls.on(/./, () => new Promise<Response>(() => {}));
  world.wake('online');
  world.pass(3_000);
  expect(connection.status.state).toBe('reconnecting');
});

test('the best way is tried again beside the lesser one, which goes on until it has the word of the server', async () => {
  const { world, connection, streams, diary, block } = served();
  connection.start();
  await block();
  await turns();
  opened(streams[0]!, 1, 3);
  streams[0]!.say(events(0, 1, 3));
  await turns();
  const before = world.sockets.length;
  world.pass(20_000);
  streams[0]!.say(heartbeat());
  await turns();
  world.pass(20_000);
  streams[0]!.say(heartbeat());
  await turns();
  world.pass(20_000);
  expect(world.sockets).toHaveLength(before + 1);
  expect(connection.status).toMatchObject({ state: 'connected', transport: 'sse' });
  world.socket.open();
  streams[0]!.say({ type: 'event', event: event(4) });
  await turns();
  expect(diary.seqs).toEqual([1, 2, 3, 4]);
  world.socket.welcome();
  expect(connection.status).toMatchObject({ state: 'connected', transport: 'websocket' });
  await turns();
  expect(streams[0]!.cancelled).toBe(true);
  const { sub, after } = world.socket.subscribes.at(-1)!;
  expect(after).toBe(4);
  world.socket.say(resumed(sub, 5, 5), events(sub, 5, 5));
  expect(diary.seqs).toEqual([1, 2, 3, 4, 5]);
});

test('a better way that fails is tried after 1, 2, 4 and then every 5 minutes', async () => {
  const { world, connection, block } = served({ transports: ['websocket', 'pages'] });
  connection.start();
  await block();
  await turns();
  expect(connection.status.transport).toBe('pages');
  const at: number[] = [];
  const began = world.time;
  let seen = world.sockets.length;
  while (world.time - began < 18 * 60_000) {
    world.pass(1_000);
    await turns();
    if (world.sockets.length > seen) {
      seen = world.sockets.length;
      at.push(Math.round((world.time - began) / 60_000));
      world.socket.drop(1006);
    }
    expect(connection.status.state).toBe('connected');
  }
  expect(at).toEqual([1, 3, 7, 12, 17]);
});

test('waking up tries the best way at once, and not more than twice a minute', async () => {
  const { world, connection, block } = served({ transports: ['websocket', 'pages'] });
  connection.start();
  await block();
  await turns();
  const before = world.sockets.length;
  world.wake('online');
  await turns();
  expect(world.sockets).toHaveLength(before + 1);
  world.socket.drop(1006);
  world.wake('visible');
  await turns();
  expect(world.sockets).toHaveLength(before + 1);
});

test('from pages a stream is tried when the WebSocket does not come, and has to be seen to flow', async () => {
  const { world, connection, streams, block } = served();
  connection.start();
  await block();
  await turns();
  world.pass(10_000);
  await turns();
  expect(connection.status.transport).toBe('pages');
  world.wake('online');
  await turns();
  world.socket.drop(1006);
  await turns();
  expect(streams).toHaveLength(2);
  expect(connection.status.transport).toBe('pages');
  opened(streams[1]!, 1, 3);
  await turns();
  expect(connection.status).toMatchObject({ state: 'connected', transport: 'sse' });
  await turns();
  expect(streams).toHaveLength(3);
});

test('Retry begins at the top, where one failure is enough for a page that was down before', async () => {
  const { world, connection, streams, block, calls } = served();
  connection.start();
  await block();
  await turns();
  opened(streams[0]!, 1, 0);
  await turns();
  calls.up = false;
  streams[0]!.end();
  await turns();
  const before = world.sockets.length;
  calls.up = true;
  connection.retry();
  expect(world.sockets).toHaveLength(before + 1);
  world.socket.drop(1006);
  await turns();
  await turns();
  expect(streams).toHaveLength(2);
});

test('commands go by calls while there is no socket', async () => {
  const { connection, calls } = served({ transports: ['pages'] });
  calls.on(/^\/tasks\/a\/runs/, () => json({ run: { id: 'r1' }, url: '' }, 201));
  connection.start();
  await turns();
  await expect(connection.command({ op: 'run', task: 'a' })).resolves.toEqual({ id: 'r1' });
  expect(calls.of(/runs/)[0]!.headers['Idempotency-Key']).toMatch(/^[0-9a-f-]{36}$/);
});
