import { expect, test } from 'vitest';
import { Diary, GEN, World, event, events, heartbeat, resetTo, resumed } from './world';

function watching() {
  const world = new World();
  const connection = world.connection();
  const diary = new Diary();
  const subscription = connection.watch('a', diary);
  connection.start();
  world.socket.welcome();
  const sub = world.socket.subscribes[0]!.sub;
  return { world, connection, diary, subscription, sub };
}

test('a new page asks for everything from the beginning', () => {
  const { world } = watching();
  expect(world.socket.subscribes).toEqual([{ sub: 1, task: 'a', after: 0 }]);
});

test('the position is set before any handler is called', () => {
  const { world, diary, subscription, sub } = watching();
  let seen = 0;
  diary.onEvents = () => {
    seen = subscription.position.seq;
    throw new Error('a handler that fails');
  };
  world.socket.say(resumed(sub, 1, 3));
  expect(() => world.socket.say(events(sub, 1, 3))).toThrow('fails');
  expect(seen).toBe(3);
  expect(subscription.position).toEqual({ gen: GEN, seq: 3 });
});

test('an empty log is caught up at once', () => {
  const { world, diary, sub } = watching();
  world.socket.say(resumed(sub, 1, 0), { type: 'caught_up', sub, seq: 0 });
  expect(diary.told).toEqual(['resumed', 'caught_up']);
  expect(diary.recovered).toEqual([null]);
});

test('a reconnect goes on from the position, and tells how much was caught up', () => {
  const { world, diary, sub } = watching();
  world.socket.say(resumed(sub, 1, 3), events(sub, 1, 3), { type: 'caught_up', sub, seq: 3 });
  world.socket.drop();
  world.pass(1_000);
  world.socket.welcome();
  expect(world.socket.subscribes).toEqual([{ sub: 2, task: 'a', gen: GEN, after: 3 }]);
  world.socket.say(resumed(2, 4, 6), events(2, 4, 6));
  expect(diary.recovered).toEqual([null]);
  world.socket.say({ type: 'caught_up', sub: 2, seq: 6 });
  expect(diary.recovered).toEqual([null, 3]);
  expect(diary.seqs).toEqual([1, 2, 3, 4, 5, 6]);
});

test('NAM-08: a reconnect with nothing missed costs one frame, which asks from the position on', () => {
  const { world, diary, sub } = watching();
  let calls = 0;
  world.answer = () => {
    calls += 1;
    return Promise.reject(new TypeError('no network'));
  };
  world.socket.say(resumed(sub, 1, 3), events(sub, 1, 3), { type: 'caught_up', sub, seq: 3 });
  world.socket.drop();
  world.pass(1_000);
  world.socket.welcome();
  world.socket.say(resumed(2, 4, 3), { type: 'caught_up', sub: 2, seq: 3 });
  expect(world.socket.sent.map(({ type }) => type)).toEqual(['hello']);
  expect(world.socket.subscribes).toEqual([{ sub: 2, task: 'a', gen: GEN, after: 3 }]);
  expect(calls).toBe(0);
  expect(diary.recovered).toEqual([null, 0]);
  expect(diary.seqs).toEqual([1, 2, 3]);
});

test('every kind of frame is handled after a reconnect as before it', () => {
  const { world, connection, diary, sub } = watching();
  connection.listen({
    tasks: () => diary.told.push('tasks'),
    notice: () => diary.told.push('notice'),
    heartbeat: () => diary.told.push('heartbeat'),
  });
  const script = (n: number, from: number): (() => void) => {
    return () =>
      world.socket.say(
        { type: 'tasks', rev: n, full: true, items: [], removed: [] },
        { type: 'notice', code: 'disk', text: 'The disk is full.' },
        resumed(n, from, from),
        { type: 'delta', sub: n, run: 'r1', key: 'k', offset: 0, text: 'x' },
        { type: 'event', sub: n, event: event(from) },
        { type: 'caught_up', sub: n, seq: from },
        ...resetTo(n, 'too_far', from + 10, from + 10).slice(1),
        events(n, from + 11, from + 12),
        { type: 'caught_up', sub: n, seq: from + 12 },
        heartbeat({ [n]: { sent: from + 12, head: from + 12 } }),
      );
  };
  script(sub, 1)();
  const first = [...diary.told];
  diary.told.length = 0;
  world.socket.drop();
  world.pass(1_000);
  world.socket.welcome();
  script(2, 14)();
  expect(diary.told).toEqual(first);
});

test('an event that skips one makes the client subscribe again from where it is', () => {
  const { world, diary, sub } = watching();
  world.socket.say(resumed(sub, 1, 9), events(sub, 1, 2), { type: 'event', sub, event: event(4) });
  expect(world.socket.subscribes[1]).toMatchObject({ sub: 2, task: 'a', gen: GEN, after: 2 });
  expect(diary.seqs).toEqual([1, 2]);
});

test('an event that comes twice is not shown twice', () => {
  const { world, diary, sub } = watching();
  world.socket.say(resumed(sub, 1, 9), events(sub, 1, 2), events(sub, 2, 3));
  expect(diary.seqs).toEqual([1, 2]);
  expect(world.socket.subscribes[1]).toMatchObject({ sub: 2, after: 2 });
});

test('the part of a batch before a gap is kept', () => {
  const { world, diary, sub } = watching();
  const items = [event(1), event(2), event(5)];
  world.socket.say(resumed(sub, 1, 9), { type: 'events', sub, first: 1, last: 5, items });
  expect(diary.seqs).toEqual([1, 2]);
  expect(world.socket.subscribes[1]).toMatchObject({ after: 2 });
});

test('frames of a subscription that was given up are discarded', () => {
  const { world, diary, sub } = watching();
  world.socket.say(resumed(sub, 1, 9), events(sub, 1, 2), { type: 'event', sub, event: event(4) });
  world.socket.say(events(sub, 3, 5), resumed(2, 3, 9), events(sub, 3, 4), events(2, 3, 4));
  expect(diary.seqs).toEqual([1, 2, 3, 4]);
});

test('a subscription that keeps going wrong is not taken up more than once a second', () => {
  const { world, sub } = watching();
  world.socket.say(resumed(sub, 1, 9), events(sub, 3, 4));
  for (let n = 2; n < 50; n += 1) world.socket.say(resumed(n, 1, 9), events(n, 3, 4));
  expect(world.socket.subscribes.length).toBeLessThanOrEqual(2);
  world.pass(1_000);
  expect(world.socket.subscribes.length).toBe(3);
});

test('a heartbeat that disagrees about what was sent makes the client subscribe again', () => {
  const { world, sub } = watching();
  world.socket.say(resumed(sub, 1, 2), events(sub, 1, 2), heartbeat({ '1': { sent: 2, head: 2 } }));
  expect(world.socket.subscribes).toHaveLength(1);
  world.socket.say(heartbeat({ '1': { sent: 3, head: 3 } }));
  expect(world.socket.subscribes[1]).toMatchObject({ sub: 2, after: 2 });
});

test('a subscription that two heartbeats forget is taken up again', () => {
  const { world, sub } = watching();
  world.socket.say(resumed(sub, 1, 2), events(sub, 1, 2), heartbeat(), heartbeat());
  expect(world.socket.subscribes[1]).toMatchObject({ sub: 2, after: 2 });
});

test('a subscription that stays behind at the same place for two heartbeats is taken up again', () => {
  const { world, sub } = watching();
  const stuck = heartbeat({ '1': { sent: 2, head: 5 } });
  world.socket.say(resumed(sub, 1, 5), events(sub, 1, 2), stuck);
  expect(world.socket.subscribes).toHaveLength(1);
  world.socket.say(stuck);
  expect(world.socket.subscribes).toHaveLength(2);
});

test('a subscribe without an answer is repeated after two heartbeats', () => {
  const { world } = watching();
  world.socket.say(heartbeat(), heartbeat());
  expect(world.socket.subscribes).toHaveLength(2);
});

test('between reset and snapshot a heartbeat says nothing about the position', () => {
  const { world, sub } = watching();
  world.socket.say(...resetTo(sub, 'too_far', 50, 50).slice(0, 2), heartbeat(), heartbeat(), heartbeat());
  expect(world.socket.subscribes).toHaveLength(1);
});

test.each(['too_far', 'from_start', 'retention', 'generation', 'future'])(
  'after a reset for %s the position is that of the snapshot',
  (why) => {
    const { world, diary, subscription, sub } = watching();
    const other = why === 'generation' || why === 'future' ? '0123456789abcdef' : GEN;
    world.socket.say(...resetTo(sub, why, 50, 52, other), events(sub, 51, 52), {
      type: 'caught_up',
      sub,
      seq: 52,
    });
    expect(diary.told).toEqual(['reset', 'snapshot', 'events', 'caught_up']);
    expect(subscription.position).toEqual({ gen: other, seq: 52 });
    expect(diary.snapshots[0]!.news.why).toBe(why);
  },
);

test('after a reset nothing counts as caught up', () => {
  const { world, diary, sub } = watching();
  world.socket.say(resumed(sub, 1, 3), events(sub, 1, 3), { type: 'caught_up', sub, seq: 3 });
  world.socket.drop();
  world.pass(1_000);
  world.socket.welcome();
  world.socket.say(...resetTo(2, 'too_far', 50_000, 50_000), { type: 'caught_up', sub: 2, seq: 50_000 });
  expect(diary.recovered).toEqual([null, null]);
});

test('a second answer on an open subscription means that the log was replaced', () => {
  const { world, diary, subscription, sub } = watching();
  world.socket.say(resumed(sub, 1, 3), events(sub, 1, 3));
  const other = '0123456789abcdef';
  world.socket.say(...resetTo(sub, 'generation', 0, 0, other), events(sub, 1, 1));
  expect(subscription.position).toEqual({ gen: other, seq: 1 });
  expect(diary.resets[0]!.had).toEqual({ gen: GEN, seq: 3 });
  expect(world.socket.subscribes).toHaveLength(1);
});

test('not_found ends the subscription and not the socket', () => {
  const { world, connection, diary, sub } = watching();
  world.socket.say({ type: 'subscribed', sub, task: 'a', outcome: 'not_found' });
  expect(diary.told).toEqual(['ended not_found']);
  expect(connection.status.state).toBe('connected');
  world.socket.say(heartbeat(), heartbeat(), heartbeat());
  world.socket.drop();
  world.pass(1_000);
  world.socket.welcome();
  expect(world.socket.subscribes).toEqual([]);
});

test('an error that may pass is tried again later, one that may not ends it', () => {
  const { world, diary, sub } = watching();
  world.socket.say({ type: 'error', sub, code: 'limit', retryable: true });
  expect(world.socket.subscribes).toHaveLength(1);
  world.pass(5_000);
  expect(world.socket.subscribes).toHaveLength(2);
  world.socket.say({ type: 'error', sub: 2, code: 'forbidden', retryable: false });
  expect(diary.told).toEqual(['ended refused']);
});

test('a task watched later is subscribed at once, and unsubscribed when it is let go', () => {
  const { world, connection } = watching();
  const other = connection.watch('b', new Diary());
  expect(world.socket.subscribes[1]).toMatchObject({ sub: 2, task: 'b', after: 0 });
  connection.unwatch(other);
  expect(world.socket.of('unsubscribe')).toEqual([{ type: 'unsubscribe', sub: 2 }]);
});
