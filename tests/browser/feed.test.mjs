// Server-sent events as a browser's own client sees them: an EventSource that nobody helps.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Stage, countingTask, hashesIn, signIn, sleep, until } from './harness.mjs';

const stage = new Stage();

/** Opens an EventSource in the page and writes down all that it gives. */
const listen = (page, where) =>
  page.evaluate((where) => {
    const source = new EventSource(where);
    const heard = { source, opened: 0, events: [] };
    window.heard = heard;
    source.onopen = () => (heard.opened += 1);
    const names = ['subscribed', 'reset', 'snapshot', 'event', 'events', 'caught_up', 'cursor', 'close'];
    for (const name of names) {
      source.addEventListener(name, ({ data, lastEventId }) => heard.events.push([name, data, lastEventId]));
    }
  }, where);

const heard = (page) =>
  page.evaluate(() => ({
    opened: window.heard.opened,
    state: window.heard.source.readyState,
    events: window.heard.events,
  }));

async function count(page, name) {
  const { events } = await heard(page);
  return events.filter(([one]) => one === name).length;
}

/** What came, in order: numbers and hashes of the events. Nothing may come that is not the next one. */
function followed({ events }) {
  const all = [];
  for (const [name, data, id] of events) {
    assert.notEqual(name, 'reset', `nothing was lost: ${data}`);
    if (name !== 'event' && name !== 'events') continue;
    all.push(...hashesIn(name, data));
    assert.equal(Number(id.split('.')[1]), all.at(-1)[0], 'its id is its last number');
  }
  all.forEach(([seq], index) => assert.equal(seq, index + 1, 'each once, and in order'));
  return all;
}

test('T-05, SWE-32: an EventSource goes on by itself over cuts, a kill and a restart, and loses and doubles nothing', async () => {
  const { server, wire } = await stage.serve({ tasks: { counting: countingTask(400, 0.02) } });
  const { page } = await stage.open();
  await signIn(page, server, wire.base);
  await server.startRun('counting');
  await listen(page, '/api/v1/tasks/counting/events');
  await until(
    'the first events',
    async () => (await count(page, 'events')) + (await count(page, 'event')) > 2,
  );
  for (const how of ['fin', 'rst']) {
    const before = await count(page, 'caught_up');
    wire.cut(how);
    await sleep(300);
    wire.mend();
    await until('it to come back', async () => (await count(page, 'caught_up')) > before);
  }
  let before = await count(page, 'caught_up');
  await server.halt('SIGKILL');
  await server.run();
  await until('it to come back to the new server', async () => (await count(page, 'caught_up')) > before);
  before = await count(page, 'caught_up');
  await server.halt('SIGTERM');
  await until('the goodbye', async () => (await count(page, 'close')) === 1);
  await server.run();
  await until('it to come back once more', async () => (await count(page, 'caught_up')) > before);
  await server.finish('counting');
  const written = await server.written('counting');
  await until('all of it to be there', async () => {
    const last = (await heard(page)).events.findLast(([, , id]) => id !== '');
    return last?.[2] === `${written.gen}.${written.head}`;
  });
  const all = await heard(page);
  assert.ok(all.opened >= 5, `it came back four times: ${all.opened}`);
  assert.deepEqual(new Map(followed(all)), written.hashes);
  const close = all.events.find(([name]) => name === 'close');
  assert.equal(JSON.parse(close[1]).code, 'draining');
});

test('an EventSource of one run comes back behind what it passed over, and one that is signed out stays away', async () => {
  const { server, wire } = await stage.serve({ tasks: { counting: countingTask(20, 0.02) } });
  const { page } = await stage.open();
  await signIn(page, server, wire.base);
  const one = await server.finish('counting');
  await server.finish('counting');
  await listen(page, `/api/v1/tasks/counting/events?run=${one.id}&after=0`);
  await until('all of it', async () => (await count(page, 'caught_up')) === 1);
  const { head, gen } = await server.written('counting');
  const first = await heard(page);
  assert.equal(first.events.findLast(([name]) => name === 'cursor')[2], `${gen}.${head}`);
  const seen = first.events.length;
  wire.cut('fin');
  wire.mend();
  await until('it to come back', async () => (await count(page, 'caught_up')) === 2);
  const again = (await heard(page)).events.slice(seen);
  assert.deepEqual(
    again.map(([name]) => name),
    ['subscribed', 'caught_up'],
    'nothing twice, by its cursor',
  );
  assert.equal(JSON.parse(again[0][1]).missed, 0);

  const { items } = await server.call('GET', '/session/devices');
  for (const { id } of items) await server.call('DELETE', `/session/devices/${id}`);
  await until('the goodbye', async () => (await count(page, 'close')) === 1);
  await until('it to stay away', async () => (await heard(page)).state === 2);
});
