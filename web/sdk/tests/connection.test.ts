import { expect, test } from 'vitest';
import { LIFE_MS, PROBE_DEADLINE_MS, WELCOME_DEADLINE_MS } from '../src/connection';
import { Diary, World, events, heartbeat, resumed } from './world';

function connected(tasks = true) {
  const world = new World();
  const connection = world.connection(tasks);
  connection.start();
  world.socket.welcome();
  return { world, connection };
}

/** All tries of a fresh page come to nothing. */
function fail(world: World): void {
  world.socket.drop();
  for (let tries = 2; tries <= 10; tries += 1) {
    world.untilNextSocket();
    world.socket.drop();
  }
}

test('connected is said only after the welcome', () => {
  const world = new World();
  const connection = world.connection();
  expect(connection.status.state).toBe('disconnected');
  connection.start();
  expect(connection.status.state).toBe('connecting');
  world.socket.open();
  expect(connection.status.state).toBe('connecting');
  world.socket.say({ type: 'welcome', protocol: 1, connection: 'c', server: { version: '1', boot: 'b' } });
  expect(connection.status.state).toBe('connected');
});

test('hello names the client, the attempt and the wish for tasks', () => {
  const { world, connection } = connected();
  expect(world.socket.sent[0]).toEqual({
    type: 'hello',
    protocol: 1,
    client: connection.client,
    attempt: 1,
    tasks: true,
    subscribe: [],
  });
});

test('the attempt of the hello grows over the life of the page', () => {
  const { world } = connected();
  for (const attempt of [2, 3, 4]) {
    world.socket.drop();
    world.pass(1_000);
    world.socket.welcome();
    expect(world.socket.sent[0]).toMatchObject({ attempt });
  }
});

test('the count of tries is not reset by opening a socket, only by a welcome', () => {
  const { world, connection } = connected();
  world.socket.drop();
  for (let tries = 1; tries <= 10; tries += 1) {
    world.untilNextSocket();
    expect(connection.status.attempt).toBe(tries);
    world.socket.open();
    expect(connection.status.attempt).toBe(tries);
    world.socket.drop();
  }
  expect(connection.status.state).toBe('failed');
  expect(world.sockets).toHaveLength(11);
});

test('ten tries without an answer are a failure, and a minute later it looks again', () => {
  const world = new World();
  const connection = world.connection();
  connection.start();
  fail(world);
  expect(connection.status).toMatchObject({ state: 'failed', blocked: 'exhausted' });
  expect(world.sockets).toHaveLength(10);
  world.pass(59_999);
  expect(world.sockets).toHaveLength(10);
  world.pass(1);
  expect(world.sockets).toHaveLength(11);
  expect(connection.status.state).toBe('failed');
  world.socket.welcome();
  expect(connection.status).toMatchObject({ state: 'connected', attempt: 0 });
});

test('a failed page that nobody looks at does not ask', () => {
  const world = new World();
  const connection = world.connection();
  connection.start();
  fail(world);
  world.isVisible = false;
  world.pass(600_000);
  expect(world.sockets).toHaveLength(10);
  world.isVisible = true;
  world.wake('visible');
  world.pass(1_000);
  expect(world.sockets).toHaveLength(11);
});

test('a server that is down costs a bounded number of sockets in an hour', () => {
  const { world } = connected();
  world.socket.drop();
  for (let second = 0; second < 3_600; second += 1) {
    world.pass(1_000);
    if (world.socket.readyState === 0) world.socket.drop();
  }
  expect(world.sockets.length).toBeLessThan(75);
});

test('Retry tries at once and starts the schedule again', () => {
  const { world, connection } = connected();
  world.socket.drop();
  for (let tries = 1; tries <= 10; tries += 1) {
    world.untilNextSocket();
    world.socket.drop();
  }
  const before = world.sockets.length;
  connection.retry();
  expect(world.sockets).toHaveLength(before + 1);
  expect(connection.status).toMatchObject({ state: 'reconnecting', attempt: 1 });
});

test('Retry opens no second socket beside one that is being made', () => {
  const world = new World();
  const connection = world.connection();
  connection.start();
  connection.retry();
  expect(world.sockets).toHaveLength(1);
});

test('the time of the next try is known while waiting', () => {
  const { world, connection } = connected();
  world.socket.drop();
  expect(connection.status).toMatchObject({ state: 'reconnecting', retryAt: world.time + 500 });
});

test('a pause asked for by the server is kept, and a wake-up does not cut it short', () => {
  const { world, connection } = connected();
  world.socket.drop(4001, '{"code":"draining","retry_ms":8000}');
  expect(connection.status).toMatchObject({ closedWith: 'draining', retryAt: world.time + 8_000 });
  world.wake('online');
  world.pass(7_999);
  expect(world.sockets).toHaveLength(1);
  world.pass(2);
  expect(world.sockets).toHaveLength(2);
});

test('a frame that was too large comes back only after the longest delay', () => {
  const { world } = connected();
  world.socket.drop(1009);
  world.pass(29_999);
  expect(world.sockets).toHaveLength(1);
  world.pass(1);
  expect(world.sockets).toHaveLength(2);
});

test.each([
  [4500, 'disconnected', 'sign_in'],
  [4505, 'disconnected', 'expired'],
  [4501, 'failed', 'refused'],
  [4502, 'failed', 'reload'],
])('close %i stays down as %s (%s) until a person acts', (code, state, blocked) => {
  const { world, connection } = connected();
  world.socket.drop(code);
  expect(connection.status).toMatchObject({ state, blocked });
  world.wake('visible');
  world.wake('online');
  world.pass(3_600_000);
  expect(world.sockets).toHaveLength(1);
  connection.retry();
  expect(world.sockets).toHaveLength(2);
});

test('the only socket of a client comes back after 4514', () => {
  const { world } = connected();
  world.socket.drop(4514);
  world.pass(1_000);
  expect(world.sockets).toHaveLength(2);
});

test('an older socket that closes, with whatever code, concerns nobody', () => {
  const { world, connection } = connected();
  const old = world.socket;
  const late = old.onclose;
  world.pass(LIFE_MS + 1_000);
  world.socket.welcome();
  late?.({ code: 4514, reason: '' });
  expect(connection.status.state).toBe('connected');
  world.pass(20_000);
  expect(world.sockets).toHaveLength(2);
});

test('an older socket that still talks is not heard', () => {
  const { world, connection } = connected();
  const diary = new Diary();
  connection.watch('a', diary);
  const late = world.socket.onmessage;
  world.pass(LIFE_MS + 1_000);
  late?.({ data: JSON.stringify({ type: 'subscribed', sub: 1, task: 'a', outcome: 'not_found' }) });
  expect(diary.told).toEqual([]);
});

test('35 seconds without a frame are the end of a socket, and any frame puts that off', () => {
  const { world, connection } = connected();
  world.pass(20_000);
  world.socket.say({ type: 'something newer' });
  world.pass(34_000);
  expect(connection.status.state).toBe('connected');
  world.pass(1_000);
  expect(connection.status.state).toBe('reconnecting');
  world.pass(1_000);
  expect(world.sockets).toHaveLength(2);
});

test('a server with another heartbeat is given as much of it', () => {
  const world = new World();
  const connection = world.connection();
  connection.start();
  world.socket.open();
  const server = { version: '1', boot: 'b' };
  world.socket.say({ type: 'welcome', protocol: 1, connection: 'c', server, heartbeat_ms: 2_000 });
  world.pass(3_499);
  expect(connection.status.state).toBe('connected');
  world.pass(1);
  expect(connection.status.state).toBe('reconnecting');
});

test('a handshake that never ends is given up', () => {
  const world = new World();
  const connection = world.connection();
  connection.start();
  world.pass(WELCOME_DEADLINE_MS);
  expect(connection.status.state).toBe('reconnecting');
});

test('a page that wakes up asks for a sign of life and keeps a socket that gives one', () => {
  const { world, connection } = connected();
  world.wake('visible');
  expect(world.socket.of('tasks')).toHaveLength(1);
  world.pass(PROBE_DEADLINE_MS - 1);
  world.socket.say(heartbeat());
  world.pass(PROBE_DEADLINE_MS);
  expect(connection.status.state).toBe('connected');
  expect(world.sockets).toHaveLength(1);
});

test('a socket that gives no sign of life within three seconds is dropped at once', () => {
  const { world, connection } = connected();
  world.wake('pageshow');
  world.pass(PROBE_DEADLINE_MS);
  expect(connection.status.state).toBe('reconnecting');
  world.pass(1_000);
  expect(world.sockets).toHaveLength(2);
});

test('several signs of waking up are one probe', () => {
  const { world } = connected();
  world.wake('visible');
  world.wake('online');
  world.wake('resume');
  expect(world.socket.of('tasks')).toHaveLength(1);
});

test('waking up while a socket is being made opens no second one', () => {
  const world = new World();
  const connection = world.connection();
  connection.start();
  world.wake('visible');
  expect(world.sockets).toHaveLength(1);
  expect(connection.status.state).toBe('connecting');
});

test.each([2, 3])('a socket in state %i is dead, whatever the page believed', (readyState) => {
  const { world, connection } = connected();
  world.socket.readyState = readyState;
  world.wake('visible');
  expect(connection.status.state).toBe('reconnecting');
  world.pass(1_000);
  expect(world.sockets).toHaveLength(2);
});

test('waking up while waiting starts the schedule again', () => {
  const { world, connection } = connected();
  world.socket.drop();
  for (let tries = 1; tries <= 7; tries += 1) {
    world.untilNextSocket();
    world.socket.drop();
  }
  world.wake('online');
  world.pass(500);
  expect(connection.status.attempt).toBe(1);
});

test('heartbeats are answered with the same moment', () => {
  const { world } = connected();
  world.socket.say(heartbeat());
  expect(world.socket.of('pong')).toEqual([{ type: 'pong', at: '2026-11-20T20:41:07.123456Z' }]);
});

test('the way there and back is measured', () => {
  const world = new World();
  const connection = world.connection();
  connection.start();
  world.socket.open();
  world.pass(42);
  world.socket.say({ type: 'welcome', protocol: 1, connection: 'c', server: { version: '1', boot: 'b' } });
  expect(connection.status.roundTripMs).toBe(42);
});

test('no frame counts before the welcome', () => {
  const world = new World();
  const connection = world.connection();
  const seen: string[] = [];
  connection.listen({ notice: (notice) => seen.push(notice.code) });
  connection.start();
  world.socket.open();
  world.socket.say({ type: 'notice', code: 'draining', text: '' });
  expect(seen).toEqual([]);
});

test.each(['not json', '[]', 'null', '{"no":"type"}', '"text"'])('the message %j is ignored', (data) => {
  const { world, connection } = connected();
  world.socket.onmessage?.({ data });
  expect(connection.status.state).toBe('connected');
});

test('a list of tasks whose number jumps is asked for again', () => {
  const { world, connection } = connected();
  const revs: number[] = [];
  connection.listen({ tasks: (frame) => revs.push(frame.rev) });
  world.socket.say({ type: 'tasks', rev: 7, full: true, items: [] });
  world.socket.say({ type: 'tasks', rev: 8, full: false, items: [] });
  expect(world.socket.of('tasks')).toHaveLength(0);
  world.socket.say({ type: 'tasks', rev: 10, full: false, items: [] });
  expect(world.socket.of('tasks')).toHaveLength(1);
  expect(revs).toEqual([7, 8, 10]);
});

test('numbers of another start of the server do not compare', () => {
  const { world, connection } = connected();
  world.socket.say({ type: 'tasks', rev: 70, full: true, items: [] });
  world.socket.drop();
  world.pass(1_000);
  world.socket.welcome('b2');
  let heard = 0;
  connection.listen({ tasks: () => (heard += 1) });
  world.socket.say(
    { type: 'tasks', rev: 1, full: true, items: [] },
    { type: 'tasks', rev: 2, full: false, items: [] },
  );
  expect(heard).toBe(2);
  expect(world.socket.of('tasks')).toHaveLength(0);
});

test('listeners to the page are registered once and taken away by stop', () => {
  const { world, connection } = connected();
  connection.start();
  world.socket.drop();
  world.pass(1_000);
  expect(world.listeners).toBe(1);
  connection.stop();
  expect(world.listeners).toBe(0);
  world.pass(3_600_000);
  expect(world.sockets).toHaveLength(2);
});

test('losing the network changes the words and nothing else', () => {
  const { world, connection } = connected();
  world.network(false);
  expect(connection.status).toMatchObject({ online: false, state: 'connected' });
  world.socket.drop();
  world.pass(1_000);
  world.socket.welcome();
  expect(connection.status).toMatchObject({ online: false, state: 'connected' });
  expect(world.sockets).toHaveLength(2);
});

test('who does not want the list of tasks is not sent it by a probe: a task is subscribed anew', () => {
  const { world, connection } = connected(false);
  const diary = new Diary();
  connection.watch('a', diary);
  world.socket.say(resumed(1, 1, 2), events(1, 1, 2));
  world.wake('visible');
  expect(world.socket.of('tasks')).toEqual([]);
  expect(world.socket.subscribes.at(-1)).toMatchObject({ sub: 2, after: 2 });
  world.socket.say(resumed(2, 3, 2));
  world.pass(PROBE_DEADLINE_MS);
  expect(connection.status.state).toBe('connected');
  expect(diary.seqs).toEqual([1, 2]);
});

test('a subscribe that has no answer yet is a probe already', () => {
  const { world, connection } = connected(false);
  connection.watch('a', new Diary());
  world.wake('visible');
  expect(world.socket.subscribes).toHaveLength(1);
  world.pass(PROBE_DEADLINE_MS);
  expect(connection.status.state).toBe('reconnecting');
});

test('who watches nothing takes another socket on waking up', () => {
  const { world, connection } = connected(false);
  world.wake('visible');
  world.pass(1_000);
  expect(world.sockets).toHaveLength(2);
  expect(world.socket.of('tasks')).toEqual([]);
  world.socket.welcome();
  expect(connection.status.state).toBe('connected');
});

test('a token goes into the first frame and not into the address', () => {
  const world = new World();
  const connection = world.connection(false, { token: 'secret' });
  connection.start();
  world.socket.welcome();
  expect(world.socket.sent[0]).toMatchObject({ type: 'hello', token: 'secret' });
  expect(connection.url).toBe('ws://test/api/v1/live');
});

test('after three subscribes in a row that went wrong the socket is let go, and a welcome is not enough to trust it', () => {
  const { world, connection } = connected(false);
  connection.watch('a', new Diary());
  let sub = 0;
  for (let round = 1; round <= 3; round += 1) {
    for (let times = 0; times < 3; times += 1) {
      sub = world.socket.subscribes.at(-1)!.sub;
      world.socket.say(resumed(sub, 1, 9), events(sub, 3, 4));
      if (times < 2) world.pass(1_000);
    }
    world.untilNextSocket();
    expect(connection.status.attempt).toBe(round);
    world.socket.welcome();
    expect(connection.status).toMatchObject({ state: 'connected' });
  }
  sub = world.socket.subscribes.at(-1)!.sub;
  world.socket.say(resumed(sub, 1, 9), events(sub, 1, 2));
  world.socket.drop();
  world.untilNextSocket();
  expect(connection.status.attempt).toBe(1);
});

test('two subscribes that went wrong are forgotten after an event in order', () => {
  const { world, connection } = connected(false);
  connection.watch('a', new Diary());
  for (let times = 0; times < 8; times += 1) {
    const { sub } = world.socket.subscribes.at(-1)!;
    const next = times + 1;
    world.socket.say(resumed(sub, next, 99), events(sub, next, next), events(sub, 50, 51));
    world.pass(1_000);
  }
  expect(world.sockets).toHaveLength(1);
});

test('the quality of a line is said: good, slow, silent, none', () => {
  const world = new World();
  const connection = world.connection();
  const said: string[] = [];
  connection.listen({ status: ({ quality }) => quality !== said.at(-1) && said.push(quality) });
  connection.start();
  world.socket.open();
  world.pass(1_200);
  world.socket.say({ type: 'welcome', protocol: 1, connection: 'c', server: { version: '1', boot: 'b' } });
  expect(connection.status).toMatchObject({ quality: 'slow', roundTripMs: 1_200 });
  world.wake('visible');
  world.pass(40);
  world.socket.say({ type: 'tasks', rev: 1, full: true, items: [] });
  expect(connection.status).toMatchObject({ quality: 'good', roundTripMs: 40 });
  world.pass(24_999);
  expect(connection.status.quality).toBe('good');
  world.pass(1);
  expect(connection.status).toMatchObject({
    quality: 'silent',
    state: 'connected',
    lastSeenAt: world.time - 25_000,
  });
  world.socket.say(heartbeat());
  expect(connection.status).toMatchObject({ quality: 'good', lastSeenAt: world.time });
  world.socket.drop();
  expect(said).toEqual(['none', 'slow', 'good', 'silent', 'good', 'none']);
});

test('a heartbeat that comes later than the others makes the way longer by as much', () => {
  const { world, connection } = connected();
  world.wake('visible');
  world.pass(30);
  world.socket.say({ type: 'tasks', rev: 1, full: true, items: [] });
  // The clock of the server is an hour ahead of this one: that is no distance.
  const ahead = 3_600_000;
  const beat = (sentAt: number) =>
    world.socket.say({ type: 'heartbeat', at: new Date(sentAt + ahead).toISOString(), heads: {} });
  world.pass(20_000);
  beat(world.time - 15);
  expect(connection.status.roundTripMs).toBe(30);
  world.pass(20_000);
  beat(world.time - 415);
  expect(connection.status.roundTripMs).toBe(430);
  world.pass(20_000);
  beat(world.time - 15);
  expect(connection.status.roundTripMs).toBe(30);
});

test('NAM-15, T-33: what the client does is said in its log, in plain words', () => {
  const world = new World();
  const told: string[] = [];
  const connection = world.connection(true, { log: (text) => told.push(text) });
  connection.start();
  world.socket.welcome();
  world.wake('visible');
  world.pass(PROBE_DEADLINE_MS);
  world.wake('online');
  world.untilNextSocket();
  world.socket.welcome();
  world.socket.drop(4500);
  expect(told).toEqual([
    'connecting',
    'connected',
    'page -> active (visible)',
    'no sign of life',
    'WS not connected - reconnecting',
    'page -> active (online)',
    'WS not connected - reconnecting',
    'connecting',
    'reconnected - notifying listeners',
    'connection closed',
    'waiting for a person: sign_in',
  ]);
  for (const text of told) expect(text).toMatch(/^[\x20-\x7e]+$/);
});
