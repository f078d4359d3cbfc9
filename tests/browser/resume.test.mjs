// Whoever comes back gets everything, once. Judged by three that know nothing of each other: the text of the frames as
// they came over the sockets, the numbers that stand on the page, and the database file read by another program.
// Times are scaled: runs of some 15 seconds, or until they are let end, stand for those of minutes.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { before, describe, test } from 'node:test';
import {
  Ear,
  Stage,
  applied,
  back,
  heldTask,
  settled,
  shownSeqs,
  signIn,
  sleep,
  state,
  until,
  untilLetEnd,
  watched,
} from './harness.mjs';

const shipped = (name) => readFile(new URL(`../../tasks/${name}.toml`, import.meta.url), 'utf8');

/** A shipped task whose step of this name goes on, and says so, until it is let end, and only then does what it does. */
async function heldIn(name, step) {
  const text = await shipped(name);
  const [before, after] = text.split(`name = "${step}"\n`);
  const hold = untilLetEnd('echo still at it; sleep 0.5');
  return `${before}name = "${step}"\n${after.replace("run = '''", () => `run = '''${hold}\n`)}`;
}

const stage = new Stage();
let server;
let wire;

before(async () => {
  ({ server, wire } = await stage.serveAll({
    tasks: {
      'smart-maintenance': await heldIn('smart-maintenance', 'inodes'),
      'complex-task': await shipped('complex-task'),
      'long-task': await heldIn('long-task', 'end'),
      away: heldTask('Away'),
      slow: `title = "Slow tool"\nagent = "steps"\n\n[[steps]]\nname = "wait"\nrun = "${untilLetEnd('sleep 0.1')}; echo it is done"\n`,
      scheduled: `title = "Every other second"\nagent = "steps"\n\n[schedule]\nevery = "2s"\n\n[[steps]]\nname = "beat"\nrun = "echo beat"\n`,
    },
  }));
  await server.call('POST', '/tasks/scheduled/pause');
});

async function open(task, base = server.base) {
  const { page, context } = await stage.open();
  const ear = new Ear(context, task);
  await signIn(page, server, base, `/tasks/${task}`);
  await settled(page);
  return { page, context, ear };
}

/** A task started as a person would, by its title in a terminal. */
async function add(title, ...more) {
  const said = JSON.parse(await server.type('tasks', 'add', title, '--json', ...more));
  return said.run;
}

/** Waits until at least one more event stands in the database file than did; gives how many. */
async function missesSomething(task, since) {
  const before = since ?? (await server.written(task)).head;
  const head = await until(
    'an event that the page misses',
    async () => {
      const now = (await server.written(task)).head;
      return now > before ? now : null;
    },
    30_000,
  );
  return head - before;
}

const nobodyThere = async () => (await server.call('GET', '/status')).connections === 0;

/** Reloads, and holds the script of the new page back until something was committed that nobody watched. */
async function refresh(page, task) {
  let missed = 0;
  let held = null;
  await page.route('**/assets/*.js', async (route) => {
    // The old page is gone by now, and its socket with it: the new document asks for its script.
    held ??= until('the old socket to be gone', nobodyThere)
      .then(() => missesSomething(task))
      .then((count) => (missed = count));
    await held;
    await route.continue();
  });
  await page.reload({ waitUntil: 'load' });
  await page.unroute('**/assets/*.js');
  assert.ok(missed >= 1, 'an event was committed between the refresh and the resume');
  return missed;
}

/** Every event of the log came over the sockets with the same text and stands on the page once. */
async function isWhole(page, ear, task) {
  const log = await server.written(task);
  await until('the page to have the last event', async () => (await applied(page)) >= log.head);
  await sleep(300);
  assert.deepEqual(ear.faults, [], 'the order on the sockets');
  assert.deepEqual(
    [...ear.hashes].sort(([a], [b]) => a - b),
    [...log.hashes],
    'number and SHA-256 of each event, as received and as written',
  );
  const { seqs, twice } = await shownSeqs(page);
  assert.deepEqual(twice, [], 'shown twice');
  assert.deepEqual(seqs, [...log.hashes.keys()], 'shown');
}

const reconnections = (task) =>
  server.log.split(`Detected WebSocket reconnection for chat=${task}, resuming updates`).length - 1;

describe('coming back', () => {
  test('SPK-23: a refresh while "Run smart maintenance" is under way goes on with the next tool call', async () => {
    const task = 'smart-maintenance';
    const run = await add('Run smart maintenance');
    const { page, ear } = await open(task);
    const replayed = await applied(page);
    await until('an event seen live', async () => (await applied(page)) > replayed, 30_000);
    await until('the second tool call', async () => (await page.locator('.tool').count()) >= 2, 30_000);
    const calls = await page.locator('.tool').count();
    await refresh(page, task);
    await settled(page);
    assert.equal((await server.runOf(run.id)).state, 'running');
    assert.equal((await server.letEnd(run)).state, 'succeeded');
    await until('the next tool call', async () => (await page.locator('.tool').count()) > calls, 30_000);
    await page.locator('.finish[data-state="succeeded"]').waitFor();
    await isWhole(page, ear, task);
    assert.ok(reconnections(task) >= 1, 'the server says in its log that somebody came back');
  });

  test('SPK-24, SPK-15, SPK-16: three refreshes within ten seconds of "Complex multi-step task"', async () => {
    const task = 'complex-task';
    const run = await add('Complex multi-step task', '-p', 'files=30');
    const { page, ear } = await open(task);
    const since = Date.now();
    const missed = [];
    for (let times = 0; times < 3; times += 1) missed.push(await refresh(page, task));
    assert.ok(Date.now() - since < 10_000, 'within ten seconds');
    await settled(page);
    assert.equal((await server.runOf(run.id)).state, 'running', 'updates are still to come');
    const before = await applied(page);
    await until('updates to go on', async () => (await applied(page)) > before);
    await server.ended(run);
    await isWhole(page, ear, task);
    assert.ok(ear.sockets.length >= 4, 'a socket for every page');
    assert.equal((await server.call('GET', '/status')).connections, 1, 'and only the last is left');
  });

  test('SPK-25: "Long task" is found running by a new tab after the only one was closed', async () => {
    const task = 'long-task';
    const run = await add('Long task', '-p', 'seconds=2');
    const { page, context, ear } = await open(task);
    await until('some seconds of it', async () => (await applied(page)) > 5);
    await page.close();
    await until('the socket to be gone', nobodyThere);
    await missesSomething(task);
    await sleep(3_000);
    const next = await watched(context);
    // What the tab could have left behind is nothing.
    await next.goto(`${server.base}/`);
    assert.equal(await next.evaluate(() => localStorage.length + sessionStorage.length), 0);
    await state(next, 'connected');
    await next.getByRole('link', { name: 'Long task' }).click();
    await settled(next);
    assert.equal((await server.runOf(run.id)).state, 'running');
    const before = await applied(next);
    await until('the next event', async () => (await applied(next)) > before);
    await server.letEnd(run);
    await isWhole(next, ear, task);
    assert.deepEqual(next.complaints, []);
  });

  test('SPK-19: what was missed is there, in order, once, and the end comes live', async () => {
    const task = 'away';
    const run = await server.startRun(task);
    const { page, ear } = await open(task, wire.base);
    await page.getByText('line 3', { exact: false }).first().waitFor();
    wire.cut('rst');
    const { head } = await server.written(task);
    await state(page, 'reconnecting');
    await missesSomething(task, head);
    await back(page, wire);
    await until('the page to be up to date again', async () => (await applied(page)) > head);
    const resumed = ear.sockets.at(-1).subscribed.at(-1);
    assert.equal(resumed.outcome, 'resumed');
    assert.ok(resumed.missed >= 1, 'the socket took up where the page stood');
    assert.equal((await server.runOf(run.id)).state, 'running');
    await server.letEnd(run);
    await isWhole(page, ear, task);
  });

  test('SPK-20: the result of a tool that was running over a refresh arrives on the new connection', async () => {
    const task = 'slow';
    const run = await server.startRun(task);
    const { page, ear } = await open(task);
    await page.locator('.tool .running').waitFor();
    await page.reload();
    await settled(page);
    await page.locator('.tool .running').waitFor();
    const resumedAt = ear.last;
    await server.letEnd(run);
    await page.locator('.out', { hasText: 'it is done' }).waitFor({ timeout: 15_000 });
    assert.ok(ear.last > resumedAt);
    await isWhole(page, ear, task);
  });

  test('SPK-21, SPK-22: runs of a schedule arrive on one open connection, each event once, and after a refresh', async () => {
    const task = 'scheduled';
    const { page, ear } = await open(task);
    const sockets = ear.sockets.length;
    await server.call('POST', `/tasks/${task}/resume`);
    const runs = async () => (await server.call('GET', `/tasks/${task}/runs`)).items;
    await until('three runs', async () => (await runs()).filter((run) => run.ended_at).length >= 3);
    const third = (await runs()).at(-3);
    await until('the page to have the third', async () => (await applied(page)) >= third.last_seq);
    await sleep(300);
    const { seqs, twice } = await shownSeqs(page);
    assert.deepEqual(twice, [], 'shown twice');
    assert.deepEqual(
      seqs,
      seqs.map((_, at) => at + 1),
      'shown from the first on, without a gap',
    );
    assert.ok(seqs.length >= third.last_seq);
    assert.equal(ear.sockets.length, sockets, 'all on the same connection');
    assert.deepEqual(ear.faults, []);
    await page.reload();
    await settled(page);
    const before = await applied(page);
    await until('another run', async () => (await applied(page)) > before);
    await server.call('POST', `/tasks/${task}/pause`);
    await until(
      'all to be quiet',
      async () => (await server.call('GET', `/tasks/${task}`)).active_runs === 0,
    );
    const log = await server.written(task);
    await until('the page to have the last event', async () => (await applied(page)) >= log.head);
    assert.deepEqual(ear.faults, []);
    assert.deepEqual(
      [...ear.hashes].sort(([a], [b]) => a - b),
      [...log.hashes],
    );
  });

  test('SPK-17: connections that come and go while events flow lose and mix up nothing', async () => {
    const task = 'away';
    const run = await server.startRun(task);
    const { page, ear } = await open(task, wire.base);
    for (let times = 0; times < 8; times += 1) {
      await sleep(300);
      wire.cut(times % 2 === 0 ? 'rst' : 'fin', 'pass');
      await page.evaluate(() => window.dispatchEvent(new Event('online')));
    }
    await state(page, 'connected');
    await server.letEnd(run);
    const first = (await server.runOf(run.id)).first_seq;
    const log = await server.written(task);
    await until('the page to have the last event', async () => (await applied(page)) >= log.head);
    assert.deepEqual(ear.faults, []);
    for (const [seq, hash] of log.hashes) if (seq >= first) assert.equal(ear.hashes.get(seq), hash, `${seq}`);
    const { seqs, twice } = await shownSeqs(page);
    assert.deepEqual(twice, []);
    assert.deepEqual(
      seqs.filter((seq) => seq >= first),
      [...log.hashes.keys()].filter((seq) => seq >= first),
    );
  });
});
