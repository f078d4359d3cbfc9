// Commands: sent over whatever there is, again after each loss, and let go only when the server has said how they ended.

import { expect, test } from 'vitest';
import { GIVE_UP_MS } from '../src/command';
import { Calls, World, json, problem, turns } from './world';

function connected() {
  const world = new World();
  const calls = new Calls();
  calls.up = false;
  world.answer = calls.fetch;
  let uuids = 0;
  const environment = { uuid: () => `00000000-0000-4000-8000-${String((uuids += 1)).padStart(12, '0')}` };
  const told: string[] = [];
  const connection = world.connection(false, { environment, log: (text) => told.push(text) });
  connection.start();
  world.socket.welcome();
  /** How a command ended, as far as it has. */
  const outcome = (promise: Promise<unknown>) => {
    const end: { done?: unknown; failed?: unknown } = {};
    promise.then(
      (done) => (end.done = done),
      (failed: unknown) => (end.failed = failed),
    );
    return end;
  };
  return { world, calls, connection, outcome, told };
}

const run = { op: 'run', task: 'a', params: { n: 1 } } as const;
const idOf = (frame: Record<string, unknown> | undefined) => frame?.id as string;

test('a command goes over the socket, and what the server did with it comes back', async () => {
  const { world, connection, outcome } = connected();
  const end = outcome(connection.command(run));
  const [frame] = world.socket.of('command');
  expect(frame).toEqual({ type: 'command', id: frame!.id, op: 'run', task: 'a', params: { n: 1 } });
  expect(frame!.id).toMatch(/^[0-9a-f-]{36}$/);
  world.socket.say({ type: 'done', id: idOf(frame), result: { id: 'r1' } });
  await turns();
  expect(end).toEqual({ done: { id: 'r1' } });
});

test('NAM-19: a command is let go on proof of receipt and not when sending it returned', async () => {
  const { world, connection, outcome } = connected();
  const end = outcome(connection.command(run));
  world.pass(1_000);
  world.socket.say({ type: 'done', id: 'of somebody else', result: {} });
  await turns();
  expect(end).toEqual({});
  world.socket.drop();
  world.untilNextSocket();
  world.socket.welcome();
  expect(world.socket.of('command')).toHaveLength(1);
});

test('NAM-18: what failed to be sent is sent by HTTP at once, under the same id', async () => {
  const { world, calls, connection, outcome, told } = connected();
  calls.up = true;
  calls.on(/^\/tasks\/a\/runs$/, () => json({ run: { id: 'r1' }, url: '' }, 201));
  const end = outcome(connection.command(run));
  const id = idOf(world.socket.of('command')[0]);
  world.socket.drop();
  await turns();
  expect(end).toEqual({ done: { id: 'r1' } });
  expect(calls.asked).toEqual([
    {
      method: 'POST',
      path: '/tasks/a/runs',
      headers: expect.objectContaining({ 'Idempotency-Key': id }),
      body: '{"params":{"n":1}}',
    },
  ]);
  expect(told).toContain('sending a command again');
});

test('NAM-16: a send that fails is a lost connection, and the command goes another way', async () => {
  const { world, calls, connection, outcome, told } = connected();
  calls.up = true;
  calls.on(/^\/runs\/r1\/stop$/, () => json({ id: 'r1', state: 'running' }, 202));
  world.socket.send = () => {
    throw new Error('the pipe is broken');
  };
  const end = outcome(connection.command({ op: 'stop', run: 'r1' }));
  expect(connection.status).toMatchObject({ state: 'reconnecting', retryAt: expect.any(Number) });
  expect(told).toContain('sending failed');
  await turns();
  expect(end).toEqual({ done: { id: 'r1', state: 'running' } });
  world.untilNextSocket();
  expect(world.sockets).toHaveLength(2);
});

test.each([2, 3])('NAM-16: a socket in state %i cannot send, and is lost at once', async (readyState) => {
  const { world, connection } = connected();
  world.socket.readyState = readyState;
  void connection.command(run).catch(() => {});
  expect(connection.status.state).toBe('reconnecting');
  await turns();
});

test('NAM-20: the socket comes back meanwhile, and what waits goes over it', async () => {
  const { world, connection, outcome } = connected();
  const end = outcome(connection.command(run));
  const id = idOf(world.socket.of('command')[0]);
  world.socket.drop();
  await turns();
  world.untilNextSocket();
  world.socket.welcome();
  await turns();
  expect(world.socket.of('command').map(idOf)).toEqual([id]);
  world.socket.say({ type: 'done', id, result: { id: 'r1' } });
  await turns();
  expect(end).toEqual({ done: { id: 'r1' } });
});

test('NAM-23: sent, left at once, returned, sent again: both arrive, each under one id', async () => {
  const { world, connection, outcome } = connected();
  const first = outcome(connection.command(run));
  world.socket.drop();
  await turns();
  world.wake('visible');
  const second = outcome(connection.command({ ...run, params: { n: 2 } }));
  await turns();
  world.untilNextSocket();
  world.socket.welcome();
  await turns();
  const sent = world.socket.of('command');
  expect(sent.map((frame) => frame.params)).toEqual([{ n: 1 }, { n: 2 }]);
  expect(new Set(sent.map(idOf)).size).toBe(2);
  for (const frame of sent) world.socket.say({ type: 'done', id: idOf(frame), result: { of: frame.params } });
  await turns();
  expect([first, second]).toEqual([{ done: { of: { n: 1 } } }, { done: { of: { n: 2 } } }]);
});

test('an error that will not pass ends it with its code, one that may does not', async () => {
  const { world, connection, outcome } = connected();
  const end = outcome(connection.command(run));
  const id = idOf(world.socket.of('command')[0]);
  world.socket.say({
    type: 'error',
    id,
    code: 'not_writable',
    message: 'The disk is full.',
    retryable: true,
  });
  await turns();
  expect(end).toEqual({});
  world.pass(4_999);
  expect(world.socket.of('command')).toHaveLength(1);
  world.pass(1);
  expect(world.socket.of('command').map(idOf)).toEqual([id, id]);
  world.socket.say({ type: 'error', id, code: 'conflict', message: 'It was used for something else.' });
  await turns();
  expect(end.failed).toMatchObject({
    name: 'Problem',
    code: 'conflict',
    message: 'It was used for something else.',
  });
});

test.each([
  [404, 'not_found'],
  [409, 'run_over'],
  [403, 'forbidden'],
])('a call that is refused with %i ends it with %s', async (status, code) => {
  const { world, calls, connection, outcome } = connected();
  calls.up = true;
  calls.on(/stop/, () => problem(status, code));
  world.socket.drop();
  const end = outcome(connection.command({ op: 'stop', run: 'r1' }));
  await turns();
  expect(end.failed).toMatchObject({ code });
});

test.each([429, 500, 502, 503])('a call that fails with %i is made again', async (status) => {
  const { world, calls, connection, outcome } = connected();
  calls.up = true;
  calls.on(/stop/, () => problem(status, 'busy'));
  world.socket.drop();
  const end = outcome(connection.command({ op: 'stop', run: 'r1' }));
  await turns();
  world.pass(400);
  await turns();
  expect(end).toEqual({});
  calls.on(/stop/, () => json({ id: 'r1' }));
  world.pass(5_000);
  await turns();
  expect(end).toEqual({ done: { id: 'r1' } });
  expect(new Set(calls.of(/stop/).map(({ headers }) => headers['Idempotency-Key'])).size).toBe(1);
});

test('a server that is down is asked ever less often, and never given up before twelve hours', async () => {
  const { world, calls, connection, outcome } = connected();
  world.socket.drop();
  connection.stop();
  const end = outcome(connection.command(run));
  for (let minutes = 0; minutes < 60; minutes += 1) {
    for (let step = 0; step < 6; step += 1) {
      world.pass(10_000);
      await turns();
    }
  }
  expect(end).toEqual({});
  expect(calls.asked.length).toBeGreaterThan(60);
  expect(calls.asked.length).toBeLessThan(260);
  world.pass(GIVE_UP_MS);
  await turns();
  world.pass(60_000);
  await turns();
  expect(end.failed).toMatchObject({ code: 'gave_up' });
  const before = calls.asked.length;
  world.pass(3_600_000);
  await turns();
  expect(calls.asked).toHaveLength(before);
});

test('the twelve hours are counted from when it was given, not from when this page began', async () => {
  const { world, connection, outcome } = connected();
  const late = outcome(connection.command(run, { at: world.time - GIVE_UP_MS + 1_000 }));
  world.pass(2_000);
  world.socket.drop();
  await turns();
  expect(late.failed).toMatchObject({ code: 'gave_up' });
});

test('who is signed out does not ask again until there is a connection', async () => {
  const { world, calls, connection, outcome } = connected();
  calls.up = true;
  calls.on(/./, () => problem(401, 'unauthenticated'));
  world.socket.drop(4505);
  const end = outcome(connection.command(run));
  await turns();
  expect(calls.asked).toHaveLength(1);
  world.pass(3_600_000);
  await turns();
  expect(calls.asked).toHaveLength(1);
  expect(end).toEqual({});
  connection.retry();
  world.socket.welcome();
  expect(world.socket.of('command')).toHaveLength(1);
});

test('a call that hangs is given up after thirty seconds and made again', async () => {
  const { world, calls, connection } = connected();
  calls.up = true;
  calls.on(/./, () => new Promise(() => {}));
  world.socket.drop(4501);
  void connection.command(run);
  await turns();
  expect(calls.asked).toHaveLength(1);
  world.pass(30_000);
  await turns();
  world.pass(2_000);
  await turns();
  expect(calls.asked).toHaveLength(2);
});

test('a command that is taken back is not sent again', async () => {
  const { world, connection, outcome } = connected();
  const stop = new AbortController();
  const end = outcome(connection.command(run, { signal: stop.signal }));
  stop.abort();
  await turns();
  expect(end.failed).toMatchObject({ code: 'aborted' });
  world.socket.drop();
  world.untilNextSocket();
  world.socket.welcome();
  expect(world.socket.of('command')).toEqual([]);
});

test('the same id twice is one command, with one end for both', async () => {
  const { world, connection, outcome } = connected();
  const ends = [
    outcome(connection.command(run, { id: 'same' })),
    outcome(connection.command(run, { id: 'same' })),
  ];
  expect(world.socket.of('command')).toHaveLength(1);
  world.socket.say({ type: 'done', id: 'same', result: { id: 'r1' } });
  await turns();
  expect(ends).toEqual([{ done: { id: 'r1' } }, { done: { id: 'r1' } }]);
});

test('T-20: nothing is made by connecting, watching or waking up', async () => {
  const { world, calls, connection } = connected();
  calls.up = true;
  connection.watch('not there', { events: () => {} });
  const { sub } = world.socket.subscribes.at(-1)!;
  world.socket.say({ type: 'subscribed', sub, task: 'not there', outcome: 'not_found' });
  world.wake('visible');
  world.socket.drop();
  await turns();
  world.untilNextSocket();
  world.socket.welcome();
  await turns();
  expect(world.sockets.flatMap((socket) => socket.of('command'))).toEqual([]);
  expect(calls.asked.filter(({ method }) => method !== 'GET')).toEqual([]);
});
