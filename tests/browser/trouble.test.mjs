// The page when something is wrong, and what a person can do: gaps, a full disk, a restart, a sign-in that ended, a
// process that will not stop, a file that cannot be read.

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { describe, test } from 'node:test';
import {
  Ear,
  PHONE,
  Stage,
  applied,
  back,
  countingTask,
  isFitToBeSeen,
  settled,
  shownSeqs,
  signIn,
  sleep,
  state,
  until,
} from './harness.mjs';

const stage = new Stage();

/** No heartbeat comes to the aid of a page that should have been told. */
const NO_HEARTBEAT = '[stream]\nheartbeat = "10m"\nlife = "20m"\n';

async function open(server, task, base = server.base, options = {}) {
  const { page, context } = await stage.open(options);
  const ear = new Ear(context, task);
  await signIn(page, server, base, task === null ? '/' : `/tasks/${task}`);
  if (task !== null) await settled(page);
  return { page, ear };
}

/** Has housekeeping do something now; gives what came of it. */
async function chore(server, id) {
  const { last: before } = await server.call('POST', `/housekeeping/${id}/run`);
  return until(`${id} to be tried`, async () => {
    const { items } = await server.call('GET', '/housekeeping');
    const { last } = items.find((one) => one.id === id);
    return last != null && last.at !== before?.at && last;
  });
}

/** Many events in no time: each step is a thought, a call, its output and its result. */
function manySteps(steps, title = 'Many steps') {
  const step = (at) => `
[[steps]]
name = "s${at}"
thought = "Step ${at} of ${steps}"
run = "echo this is ${at}"
`;
  return `title = "${title}"\nagent = "steps"\n${Array.from({ length: steps }, (_, at) => step(at + 1)).join('')}`;
}

describe('a gap is said aloud', () => {
  test('T-08: who missed too much is told so, and the rest is loaded from history', async () => {
    const { server, wire } = await stage.serve({
      tasks: { many: manySteps(40) },
      config: '[stream]\nreplay_events = 50\n',
    });
    await server.call('POST', '/tasks/many/pause');
    await server.call('POST', '/tasks/many/resume');
    const { page, ear } = await open(server, 'many', wire.base, { viewport: PHONE });
    assert.equal(await applied(page), 2);
    wire.cut('rst');
    await state(page, 'reconnecting');
    await server.finish('many');
    await back(page, wire);
    await page.locator('[data-reset="too_far"]').waitFor();
    await page.getByText('Too much was missed to replay.').waitFor();
    await page.getByText('The rest has been loaded from history.').waitFor();
    await isFitToBeSeen(page);
    await page.getByRole('button', { name: 'Understood' }).click();
    const log = await server.written('many');
    assert.ok(log.head > 150);
    assert.equal(await applied(page), log.head);
    assert.ok(ear.hashes.size < 50, 'the socket did not send what was too much');
    const { seqs, twice } = await shownSeqs(page);
    assert.deepEqual(twice, []);
    assert.deepEqual(seqs, [...log.hashes.keys()]);
  });

  test('a log too long to replay is opened at its last run, and read back from there', async () => {
    const { server } = await stage.serve({
      tasks: { many: manySteps(30) },
      config: '[stream]\nreplay_events = 50\n',
    });
    await server.finish('many');
    const { page } = await open(server, 'many');
    await page.getByText('this is 30', { exact: false }).first().waitFor();
    const log = await server.written('many');
    const { seqs, twice } = await shownSeqs(page);
    assert.deepEqual(twice, []);
    assert.deepEqual(seqs, [...log.hashes.keys()]);
  });

  test('T-09: a task that was removed and made again shows the new log, and says so', async () => {
    const { server, wire } = await stage.serve();
    const make = (word) =>
      server.call('POST', '/tasks', {
        id: 'remade',
        title: 'Remade',
        agent: 'steps',
        steps: [{ name: 'say', run: `echo ${word}` }],
        run: false,
      });
    await make('before');
    await server.finish('remade');
    const { page } = await open(server, 'remade', wire.base);
    await page.locator('.out', { hasText: 'before' }).waitFor();
    wire.cut('rst');
    await state(page, 'reconnecting');
    await server.call('DELETE', '/tasks/remade?stop=true');
    await make('afterwards');
    const { id } = await server.finish('remade');
    await back(page, wire);
    await page.locator('[data-reset="replaced"]').waitFor();
    await page.locator('.out', { hasText: 'afterwards' }).waitFor();
    assert.equal(await page.locator('.out', { hasText: 'before' }).count(), 0);
    await until('the runs of the new log, and no other', async () => {
      const runs = await page.locator('aside .runs a').evaluateAll((all) => all.map((one) => one.pathname));
      return runs.join() === `/tasks/remade/runs/${id}`;
    });
    await isFitToBeSeen(page);
  });

  test('what is no longer kept is said to be gone', async () => {
    const { server, wire } = await stage.serve({
      tasks: { many: manySteps(20) },
      config: '[retention]\nevents = 60\nevery = "1s"\n',
    });
    await server.call('POST', '/tasks/many/pause');
    await server.call('POST', '/tasks/many/resume');
    const { page } = await open(server, 'many', wire.base);
    wire.cut('rst');
    await state(page, 'reconnecting');
    await server.finish('many');
    await server.finish('many');
    await until(
      'the beginning to be removed',
      async () => (await server.call('GET', '/tasks/many')).oldest > 4,
    );
    await back(page, wire);
    await page.locator('[data-reset="retention"]').waitFor();
    await page.getByText('Some of what was missed is no longer kept.').waitFor();
    await page.getByText('The rest has been loaded from history.').waitFor();
  });
});

describe('a server in trouble', () => {
  test('a full disk: it says so, shows nothing unsaved, and goes on by itself', async () => {
    const { server } = await stage.serve({ tasks: { counting: countingTask(60, 0.2) } });
    const { page, ear } = await open(server, 'counting', server.base, { viewport: PHONE });
    const run = await server.startRun('counting');
    await page.getByText('line 5', { exact: false }).first().waitFor();
    await server.fillDisk();
    await page.locator('[data-notice="store_not_writable"]').waitFor({ timeout: 30_000 });
    await isFitToBeSeen(page);
    const stands = await server.written('counting');
    // An emptied log would be room, were there any to empty it into.
    const emptied = await chore(server, 'checkpoint');
    assert.equal(emptied.ok, false);
    assert.match(emptied.result, /cannot be written/);
    await sleep(2_000);
    assert.deepEqual((await server.written('counting')).head, stands.head, 'nothing can be saved');
    assert.ok((await applied(page)) <= stands.head, 'and nothing unsaved is shown');
    assert.ok(ear.last <= stands.head);
    await state(page, 'connected');
    assert.equal((await server.runOf(run.id)).state, 'running');
    await server.emptyDisk();
    await page.locator('[data-notice="store_not_writable"]').waitFor({ state: 'detached', timeout: 30_000 });
    assert.equal((await chore(server, 'checkpoint')).ok, true);
    assert.equal((await server.ended(run)).state, 'succeeded');
    const log = await server.written('counting');
    await until('the rest', async () => (await applied(page)) === log.head);
    assert.deepEqual(ear.faults, []);
    assert.deepEqual([...ear.hashes], [...log.hashes]);
    await sleep(300);
    const { seqs, twice } = await shownSeqs(page);
    assert.deepEqual(twice, []);
    assert.deepEqual(seqs, [...log.hashes.keys()]);
    await page.getByText('line 60').first().waitFor();
  });

  test('a full disk and nobody signed in: the link says why it does not work, and works afterwards', async () => {
    const { server } = await stage.serve({ tasks: { counting: countingTask(400, 0.2) } });
    await server.startRun('counting');
    await sleep(500);
    await server.fillDisk();
    await until(
      'the server to notice',
      async () => (await server.call('GET', '/status')).notices.length > 0,
      30_000,
    );
    const { page } = await stage.open();
    const code = await server.code();
    await page.goto(`${server.base}/#code=${code}`);
    await page.getByRole('alert').filter({ hasText: 'disk is full' }).waitFor({ timeout: 15_000 });
    await server.emptyDisk();
    const connected = page.locator('[data-connection="connected"]');
    await until('the disk to be good again', async () => {
      await page.getByLabel('Or paste its code, or a token').fill(code);
      await page.getByRole('button', { name: 'Sign in' }).click();
      // What was said of the last try goes as this one begins; where it works there is no field to fill any more.
      await connected.or(page.locator('#proof-error')).first().waitFor({ state: 'attached' });
      return (await connected.count()) > 0;
    });
  });

  test('a restart: the page says that the server restarts, comes back, and has the same history', async () => {
    const { server } = await stage.serve({
      tasks: { counting: countingTask(200, 0.2) },
      config: '[runs]\nshutdown_grace = "1s"\nstop_term = "300ms"\n',
    });
    const run = await server.startRun('counting');
    const { page, ear } = await open(server, 'counting');
    await page.getByText('line 5', { exact: false }).first().waitFor();
    const before = await applied(page);
    const gone = server.halt();
    await page
      .getByText(/The server is (about to restart|restarting)/)
      .first()
      .waitFor({ timeout: 10_000 });
    await gone;
    await server.run();
    await state(page, 'connected', 40_000);
    const now = await server.ended(run);
    assert.ok(['interrupted', 'cancelled'].includes(now.state), now.state);
    const log = await server.written('counting');
    await until('the end of the run', async () => (await applied(page)) >= log.head);
    assert.ok(log.head > before);
    assert.deepEqual(ear.faults, []);
    assert.deepEqual([...ear.hashes], [...log.hashes], 'the same history, none twice');
    assert.equal(await page.locator('[data-reset]').count(), 0, 'nothing was lost, so no gap is claimed');
    const { seqs, twice } = await shownSeqs(page);
    assert.deepEqual(twice, []);
    assert.deepEqual(seqs, [...log.hashes.keys()]);
  });

  test('a device that is signed out elsewhere is told at once, and comes back where it was', async () => {
    const { server } = await stage.serve({
      tasks: { counting: countingTask(3, 0.05) },
      config: NO_HEARTBEAT,
    });
    await server.finish('counting');
    const { page } = await open(server, 'counting');
    const { items } = await server.call('GET', '/session/devices');
    await server.call('DELETE', `/session/devices/${items[0].id}`);
    await page.getByRole('heading', { name: 'Your sign-in has ended' }).waitFor({ timeout: 15_000 });
    await page.getByText('Signed out').waitFor();
    assert.equal(await page.getByText('the end').count(), 0, 'nothing of the task is left on the page');
    await page.getByLabel('Or paste its code, or a token').fill(await server.code());
    await page.getByRole('button', { name: 'Sign in' }).click();
    await settled(page);
    await page.locator('.out', { hasText: 'the end' }).waitFor();
    assert.equal(new URL(page.url()).pathname, '/tasks/counting');
  });
});

describe('what a person can do', () => {
  const GREETS = `title = "Greets"
agent = "steps"

[schedule]
every = "1h"

[params]
name = { default = "world", help = "Who is greeted" }
times = { default = 2 }

[[steps]]
name = "greet"
run = "echo hello $REJOIN_PARAM_NAME $REJOIN_PARAM_TIMES"
`;

  test('parameters are asked for with their defaults, and reach the run', async () => {
    const { server } = await stage.serve({ tasks: { greets: GREETS } });
    const { page } = await open(server, 'greets', server.base, { viewport: PHONE });
    await page.getByRole('button', { name: 'Run now' }).click();
    assert.equal(await page.getByLabel('name').inputValue(), 'world');
    await page.getByText('Who is greeted').first().waitFor();
    await isFitToBeSeen(page);
    await page.getByLabel('name').fill('$(id); "Ada"');
    await page.getByLabel('times').fill('3');
    await page.getByRole('button', { name: 'Run with these' }).click();
    await page.locator('.out', { hasText: 'hello $(id); "Ada" 3' }).waitFor();
    const { items } = await server.call('GET', '/tasks/greets/runs');
    assert.equal(items.length, 1);
    assert.deepEqual(items[0].params, { name: '$(id); "Ada"', times: 3 });
  });

  test('Pause keeps a schedule from starting anything, over a refresh too, and Resume lets it go on', async () => {
    const { server } = await stage.serve({ tasks: { greets: GREETS } });
    const { page } = await open(server, 'greets');
    await page.getByRole('button', { name: 'Pause' }).click();
    await page.getByRole('button', { name: 'Resume schedule' }).waitFor();
    await page.getByText('Paused: nothing starts by itself.').waitFor();
    const paused = await server.call('GET', '/tasks/greets');
    assert.equal(paused.state, 'paused');
    assert.equal(paused.next_at, null);
    await page.reload();
    await page.getByRole('button', { name: 'Resume schedule' }).click();
    await page.getByRole('button', { name: 'Pause' }).waitFor();
    assert.equal((await server.call('GET', '/tasks/greets')).state, 'idle');
  });

  test('PER-10, T-28: Stop goes on until the process is gone, and says how far it is', async () => {
    const { server, wire } = await stage.serve({
      tasks: {
        deaf: `title = "Hears nothing"\nagent = "steps"\n\n[[steps]]\nname = "wait"\nrun = "trap '' INT TERM; echo waiting; while true; do sleep 0.2; done"\n`,
      },
      // Each stage is there for long enough to be seen by who looks twice a second at best.
      config: '[runs]\nstop_term = "5s"\nstop_kill = "10s"\nstop_give_up = "20s"\n',
    });
    const run = await server.startRun('deaf');
    const { page } = await open(server, 'deaf', wire.base);
    await page.locator('.out', { hasText: 'waiting' }).waitFor();
    wire.cut('rst');
    await state(page, 'reconnecting');
    await back(page, wire);
    await page.getByRole('button', { name: 'Stop', exact: true }).first().click();
    await page.getByRole('button', { name: 'Stopping …' }).first().waitFor();
    await page.getByRole('status').filter({ hasText: 'SIGINT' }).first().waitFor();
    await page.getByRole('status').filter({ hasText: 'SIGTERM' }).first().waitFor();
    await page.locator('[data-kind="status"]').filter({ hasText: 'SIGKILL' }).first().waitFor();
    await page.locator('[data-state="cancelled"]').first().waitFor();
    const now = await server.ended(run);
    assert.equal(now.state, 'cancelled');
    const steps = (await server.events('deaf'))
      .filter(({ kind, data }) => kind === 'status' && (data.stage || data.state === 'cancelled'))
      .map(({ at, data }) => ({ what: data.stage ?? data.state, at: Date.parse(at) }));
    assert.deepEqual(
      steps.map(({ what }) => what),
      ['SIGINT', 'SIGTERM', 'SIGKILL', 'cancelled'],
    );
    assert.ok(steps.at(-1).at - steps[0].at < 20_000, 'it was gone before it would have been given up');
    const { head } = await server.written('deaf');
    assert.equal(head, now.last_seq, 'nothing follows the end');
  });

  test('a browser that is out of reach is signed out from another', async () => {
    const { server } = await stage.serve({ config: NO_HEARTBEAT });
    const lost = await open(server, null);
    const { page } = await open(server, null, server.base, { viewport: PHONE });
    await page.getByRole('button', { name: 'Signed-in browsers' }).click();
    const lines = page.locator('[data-device]');
    await until('both', async () => (await lines.count()) === 2);
    await lines.filter({ hasText: 'this one' }).waitFor();
    await isFitToBeSeen(page);
    await lines.getByRole('button', { name: 'Sign out' }).click();
    await lost.page.getByRole('heading', { name: 'Your sign-in has ended' }).waitFor({ timeout: 15_000 });
    await until('only this one', async () => (await lines.count()) === 1);
    await state(page, 'connected');
  });

  test('the overview puts what needs somebody first, then what failed, and names the line of a bad file', async () => {
    const bad = 'title = "Has a typo"\nagent = "steps"\n\n[policy]\noverlp = "skip"\n';
    const { server } = await stage.serve({
      tasks: {
        alpha: countingTask(1, 0, 'Alpha is quiet'),
        fails: 'title = "Beta fails"\nagent = "steps"\n\n[[steps]]\nname = "a"\nrun = "exit 3"\n',
        typo: bad,
        certificate: `title = "Zeta wants somebody"\nagent = "steps"\n\n[[steps]]\nname = "look"\nrun = "echo 6 days"\nattention = 'output.contains("6 days")'\nsummary = "It ends in six days"\n`,
        long: countingTask(200, 0.2, 'Gamma runs'),
      },
    });
    await server.finish('alpha');
    await server.finish('fails');
    await server.finish('certificate');
    const run = await server.startRun('long');
    const { page } = await open(server, null);
    const order = () => page.locator('[data-task]').evaluateAll((all) => all.map((one) => one.dataset.task));
    await until('the order', async () => (await order()).length === 5);
    const found = await order();
    assert.equal(found[0], 'certificate');
    assert.deepEqual(found.slice(1, 3).sort(), ['fails', 'typo']);
    assert.deepEqual(found.slice(3), ['long', 'alpha']);
    assert.deepEqual(await page.locator('h2').allInnerTexts(), [
      'Needs you 1',
      'Failed 2',
      'Running 1',
      'All quiet 1',
    ]);
    await page.locator('[data-task="certificate"]').getByText('It ends in six days').waitFor();
    await page.locator('[data-task="typo"]').getByText('typo.toml:5').waitFor();
    await isFitToBeSeen(page);
    const good = bad.replace('overlp', 'overlap') + '\n[[steps]]\nname = "a"\nrun = "true"\n';
    await writeFile(path.join(server.folder, 'tasks', 'typo.toml'), good, { mode: 0o600 });
    const line = page.locator('[data-task="typo"]');
    await line.getByText('Has a typo').waitFor({ timeout: 15_000 });
    assert.equal(await line.getByText('typo.toml').count(), 0, 'the complaint goes with its cause');
    await server.call('POST', `/runs/${run.id}/stop`);
  });
});
