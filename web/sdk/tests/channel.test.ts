// Several who watch one task over one connection, of which the server knows one.

import { expect, test } from 'vitest';
import { Diary, GEN, World, event, events, heartbeat, resetTo, resumed } from './world';

const OTHER = 'fedcba9876543210';

function watching() {
  const world = new World();
  const connection = world.connection(false);
  const first = new Diary();
  const subscription = connection.watch('a', first);
  connection.start();
  world.socket.welcome();
  world.socket.say(resumed(1, 1, 3), events(1, 1, 3), { type: 'caught_up', sub: 1, seq: 3 });
  return { world, connection, first, subscription };
}

test('a second watcher is served from the beginning, and the first hears nothing twice', () => {
  const { world, connection, first, subscription } = watching();
  const second = new Diary();
  const other = connection.watch('a', second);
  expect(world.socket.subscribes.at(-1)).toEqual({ type: 'subscribe', sub: 2, task: 'a', after: 0 });
  world.socket.say(resumed(2, 1, 4), events(2, 1, 4), { type: 'caught_up', sub: 2, seq: 4 });
  expect(second.told).toEqual(['resumed', 'events', 'caught_up']);
  expect(second.seqs).toEqual([1, 2, 3, 4]);
  expect(first.seqs).toEqual([1, 2, 3, 4]);
  expect(first.told).toEqual(['resumed', 'events', 'caught_up', 'events']);
  expect(subscription.position).toEqual(other.position);
});

test('two that come together are one subscribe', () => {
  const world = new World();
  const connection = world.connection(false);
  const diaries = [new Diary(), new Diary()];
  for (const diary of diaries) connection.watch('a', diary);
  connection.start();
  world.socket.welcome();
  expect(world.socket.subscribes).toHaveLength(1);
  world.socket.say(resumed(1, 1, 2), events(1, 1, 2));
  for (const diary of diaries) expect(diary.seqs).toEqual([1, 2]);
});

test('one that comes while another waits for its answer is next', () => {
  const { world, connection } = watching();
  const second = new Diary();
  const third = new Diary();
  connection.watch('a', second);
  connection.watch('a', third, { gen: GEN, seq: 2 });
  expect(world.socket.subscribes).toHaveLength(2);
  world.socket.say(resumed(2, 1, 3));
  expect(world.socket.subscribes.at(-1)).toMatchObject({ sub: 3, gen: GEN, after: 0 });
  world.socket.say(resumed(3, 1, 3), events(3, 1, 3));
  expect(second.seqs).toEqual([1, 2, 3]);
  expect(third.seqs).toEqual([3]);
});

test('a reconnect begins where the one is that is furthest behind, and each is told its own', () => {
  const { world, connection, first } = watching();
  const second = new Diary();
  connection.watch('a', second, { gen: GEN, seq: 3 });
  world.socket.say(resumed(2, 4, 3));
  world.socket.drop();
  world.untilNextSocket();
  world.socket.welcome();
  expect(world.socket.subscribes).toEqual([{ sub: 3, task: 'a', gen: GEN, after: 3 }]);
  world.socket.say(resumed(3, 4, 5), events(3, 4, 5), { type: 'caught_up', sub: 3, seq: 5 });
  expect(first.recovered.at(-1)).toBe(2);
  expect(second.recovered.at(-1)).toBe(2);
  expect(second.seqs).toEqual([4, 5]);
});

test('a newcomer who gets a snapshot takes nothing from those who have more', () => {
  const { world, connection, first } = watching();
  const second = new Diary();
  connection.watch('a', second);
  const [subscribed, reset, snapshot] = resetTo(2, 'from_start', 2, 3);
  world.socket.say(subscribed!, reset!, snapshot!, events(2, 3, 4), { type: 'caught_up', sub: 2, seq: 4 });
  expect(second.told).toEqual(['reset', 'snapshot', 'events', 'caught_up']);
  expect(second.seqs).toEqual([3, 4]);
  expect(first.seqs).toEqual([1, 2, 3, 4]);
  expect(first.resets).toEqual([]);
});

test('who is behind the snapshot of another goes on from its own place', () => {
  const { world, connection, first } = watching();
  const second = new Diary();
  connection.watch('a', second);
  world.socket.say(...resetTo(2, 'from_start', 5, 5));
  // Between three and five the first has missed something: it is asked for again.
  expect(world.socket.subscribes.at(-1)).toMatchObject({ sub: 3, gen: GEN, after: 3 });
  world.socket.say(resumed(3, 4, 6), events(3, 4, 6));
  expect(first.seqs).toEqual([1, 2, 3, 4, 5, 6]);
  expect(second.seqs).toEqual([6]);
});

test('that the log is another holds for all', () => {
  const { world, connection, first, subscription } = watching();
  const second = new Diary();
  connection.watch('a', second, { gen: 'aaaaaaaaaaaaaaaa', seq: 9 });
  expect(world.socket.subscribes.at(-1)).toMatchObject({ gen: 'aaaaaaaaaaaaaaaa', after: 9 });
  world.socket.say(...resetTo(2, 'generation', 1, 1, OTHER), events(2, 2, 2));
  for (const diary of [first, second]) {
    expect(diary.resets.at(-1)!.why).toBe('generation');
    expect(diary.seqs.at(-1)).toBe(2);
  }
  expect(first.resets[0]!.had).toEqual({ gen: GEN, seq: 3 });
  expect(subscription.position).toEqual({ gen: OTHER, seq: 2 });
});

test('who is beyond the end is told so under its own position', () => {
  const world = new World();
  const connection = world.connection(false);
  const diaries = [new Diary(), new Diary()];
  connection.watch('a', diaries[0]!, { gen: GEN, seq: 3 });
  connection.watch('a', diaries[1]!, { gen: GEN, seq: 9 });
  connection.start();
  world.socket.welcome();
  expect(world.socket.subscribes).toEqual([{ sub: 1, task: 'a', gen: GEN, after: 3 }]);
  world.socket.say(resumed(1, 4, 5));
  expect(world.socket.subscribes.at(-1)).toMatchObject({ sub: 2, gen: GEN, after: 9 });
  world.socket.say(...resetTo(2, 'future', 5, 5, OTHER));
  for (const diary of diaries) expect(diary.told.slice(-2)).toEqual(['reset', 'snapshot']);
});

test('the last one to go ends the subscription, the others go on', () => {
  const { world, connection, first, subscription } = watching();
  const second = new Diary();
  const other = connection.watch('a', second, { gen: GEN, seq: 3 });
  world.socket.say(resumed(2, 4, 3));
  connection.unwatch(subscription);
  world.socket.say({ type: 'event', sub: 2, event: event(4) });
  expect(first.seqs).toEqual([1, 2, 3]);
  expect(second.seqs).toEqual([4]);
  expect(world.socket.of('unsubscribe')).toEqual([]);
  connection.unwatch(other);
  expect(world.socket.of('unsubscribe')).toEqual([{ type: 'unsubscribe', sub: 2 }]);
});

test('a handler that fails takes nothing from another', () => {
  const { world, connection, first } = watching();
  const second = new Diary();
  connection.watch('a', second, { gen: GEN, seq: 3 });
  world.socket.say(resumed(2, 4, 3));
  first.onEvents = () => {
    throw new Error('a handler that fails');
  };
  expect(() => world.socket.say(events(2, 4, 5))).toThrow('fails');
  expect(second.seqs).toEqual([4, 5]);
});

test('a text that is being written reaches each from where it came in', () => {
  const { world, connection, subscription } = watching();
  const delta = (sub: number, offset: number, text: string) => ({
    type: 'delta' as const,
    sub,
    run: 'r1',
    key: 'k',
    offset,
    text,
  });
  world.socket.say(delta(1, 0, 'Hello'));
  const other = connection.watch('a', new Diary(), { gen: GEN, seq: 3 });
  world.socket.say(resumed(2, 4, 3), delta(2, 0, 'Hello'), delta(2, 5, ' world'));
  expect(other.drafts.entries()).toEqual([['k', 'Hello world']]);
  expect(subscription.drafts.entries()).toEqual([['k', 'Hello world']]);
  world.socket.say({ type: 'event', sub: 2, event: event(4, 'thought', { key: 'k', text: 'Hello world!' }) });
  expect(other.drafts.entries()).toEqual([]);
  world.socket.say(delta(2, 0, 'Hello'));
  expect(subscription.drafts.entries()).toEqual([]);
});

test('a task that was removed and is made again is taken up again, once per log', () => {
  const world = new World();
  const connection = world.connection(true);
  const diary = new Diary();
  connection.watch('a', diary);
  connection.start();
  world.socket.welcome();
  world.socket.say(resumed(1, 1, 2), events(1, 1, 2));
  world.socket.say({ type: 'subscribed', sub: 1, task: 'a', outcome: 'not_found' });
  const list = (rev: number, gen: string) =>
    world.socket.say({
      type: 'tasks',
      rev,
      full: rev === 1,
      items: [{ id: 'a', title: 'A', state: 'idle', enabled: true, gen }],
    });
  list(1, GEN);
  expect(world.socket.subscribes).toHaveLength(1);
  list(2, OTHER);
  expect(world.socket.subscribes.at(-1)).toEqual({ type: 'subscribe', sub: 2, task: 'a', after: 0 });
  world.socket.say({ type: 'subscribed', sub: 2, task: 'a', outcome: 'not_found' });
  list(3, OTHER);
  expect(world.socket.subscribes).toHaveLength(2);
  expect(diary.told).toEqual(['resumed', 'events', 'ended not_found', 'ended not_found']);
  world.socket.say(heartbeat(), heartbeat());
  expect(world.socket.subscribes).toHaveLength(2);
});
