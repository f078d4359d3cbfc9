// When tasks run and by which rules: what a person sees of it, sets, and answers, in a real browser.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import {
  PHONE,
  Stage,
  isFitEverywhere,
  isFitForFingers,
  isFitToBeSeen,
  settled,
  signIn,
  until,
} from './harness.mjs';
import { FINDS, everySecond, oneStep } from './tasks.mjs';

const stage = new Stage();
let server;

before(async () => {
  ({ server } = await stage.serveAll({
    tasks: {
      finds: FINDS,
      // Ends well at even seconds and fails at odd ones.
      moody: everySecond('Moody', '2s', 'exit $(( $(date +%s) % 2 ))'),
      nightly: oneStep('Nightly backup', '[schedule]\ncron = "30 2 * * *"\ntz = "UTC"\n'),
      often: oneStep('Heartbeat', '[schedule]\nevery = "1m"\n'),
      slow: oneStep('Slow', '[policy]\noverlap = "queue"\nqueue_limit = 5\n', 'sleep 60'),
    },
  }));
});

async function open(where = '/', options = {}) {
  const { page } = await stage.open(options);
  await signIn(page, server, server.base, where);
  return page;
}

async function find() {
  const { id } = await server.finish('finds');
  return id;
}

describe('what runs have found', () => {
  test('it stands first until somebody acknowledges it, and then in no browser any more', async () => {
    await find();
    const run = await find();
    const one = await open();
    const other = await open('/', { viewport: PHONE });
    for (const page of [one, other]) {
      await page
        .locator('[data-task="finds"]')
        .getByText(/^The certificate of .* ends in 6 days, and 1 before/)
        .waitFor();
      const first = await page.locator('[data-task]').first().getAttribute('data-task');
      assert.equal(first, 'finds');
    }
    await isFitEverywhere(one);
    // By the keyboard alone: the button is a stop of its own beside the link of the line.
    await one.getByRole('link', { name: 'Certificates' }).focus();
    await one.keyboard.press('Tab');
    await one.keyboard.press('Enter');
    for (const page of [one, other]) {
      await page.getByRole('button', { name: 'Acknowledge' }).waitFor({ state: 'detached' });
      await page.getByRole('heading', { name: /All quiet/ }).waitFor();
    }
    const { items } = await server.call('GET', '/attention?state=acknowledged');
    assert.equal(items[0].run, run);
  });

  test('what is snoozed goes everywhere, and comes back by itself', async () => {
    const run = await find();
    const one = await open('/tasks/finds');
    const other = await open();
    await settled(one);
    await isFitEverywhere(one);
    await one.getByRole('button', { name: 'Snooze …' }).click();
    await isFitForFingers(one);
    await one.getByRole('button', { name: '4 hours' }).click();
    await one.getByText(/Snoozed until/).waitFor();
    await other.getByRole('button', { name: 'Acknowledge' }).waitFor({ state: 'detached' });
    // For a second only, to see its end.
    await server.call('POST', `/runs/${run}/snooze`, { for: '2s' });
    await other.getByRole('button', { name: 'Acknowledge' }).waitFor();
    await one.getByRole('button', { name: 'Acknowledge' }).waitFor();
    await server.call('POST', `/runs/${run}/acknowledge`, {});
  });

  test('all findings are listed with what was answered, and what was put away is brought back', async () => {
    const run = await find();
    await server.call('POST', `/runs/${run}/snooze`, { for: '4h' });
    const page = await open();
    await page.getByRole('button', { name: 'Findings' }).click();
    const line = page.locator('[data-finding="snoozed"]');
    await line.getByText('Snoozed until').waitFor();
    await isFitEverywhere(page);
    await line.getByRole('button', { name: 'Show again' }).click();
    await page.locator('[data-task="finds"]').getByRole('button', { name: 'Acknowledge' }).click();
    await page.locator('[data-finding="acknowledged"]').first().waitFor();
    await until(
      'all to be answered',
      async () => (await page.locator('[data-finding="open"], [data-finding="snoozed"]').count()) === 0,
    );
  });
});

describe('the last due times', () => {
  /** Those that have a run of their own: where the machine is busy one or the other is skipped, merged or missed. */
  const hasRun = ({ outcome }) => outcome === 'ran' || outcome === 'late';

  test('each outcome has a shape and a colour, a name that says it all, and keys lead through them to the run', async () => {
    await until('some slots, with runs that went well and badly', async () => {
      const { items } = await server.call('GET', '/tasks/moody/slots');
      const runs = items.filter(hasRun).map(({ run_state }) => run_state);
      return items.length > 8 && runs.length > 3 && runs.includes('succeeded') && runs.includes('failed');
    });
    await server.call('POST', '/tasks/moody/pause', {});
    await until('slots while paused', async () => {
      const { items } = await server.call('GET', '/tasks/moody/slots');
      return items[0].outcome === 'disabled' && items[0].count > 1;
    });
    const page = await open('/tasks/moody');
    await settled(page);
    const strip = page.getByRole('listbox', { name: 'What became of its last due times' });
    await strip.waitFor();
    const marks = await page.locator('[data-slot]').evaluateAll((all) =>
      all.map((one) => ({
        kind: one.dataset.slot,
        name: one.getAttribute('aria-label'),
        path: one.querySelector('path').getAttribute('d'),
        colour: getComputedStyle(one.querySelector('svg')).color,
      })),
    );
    const looks = new Map(marks.map((mark) => [mark.kind, mark]));
    for (const kind of ['ran', 'failed', 'disabled'])
      assert.ok(looks.has(kind), `${kind} of ${[...looks.keys()]}`);
    assert.equal(new Set([...looks.values()].map(({ path }) => path)).size, looks.size, 'shapes');
    assert.equal(new Set(['ran', 'failed', 'disabled'].map((kind) => looks.get(kind).colour)).size, 3);
    assert.match(looks.get('disabled').name, /: While off, \d+ times in a row, the task is paused$/);
    await isFitEverywhere(page);

    await strip.focus();
    await page.keyboard.press('Home');
    const chosen = () => page.locator('[data-chosen]').getAttribute('data-chosen');
    const { items } = await server.call('GET', '/tasks/moody/slots');
    const oldest = [...items].reverse();
    assert.equal(Date.parse(await chosen()), Date.parse(oldest[0].scheduled_for));
    const at = oldest.findIndex((slot, at) => at > 0 && hasRun(slot));
    for (let times = 1; times <= at; times += 1) {
      await page.keyboard.press('ArrowRight');
      assert.equal(Date.parse(await chosen()), Date.parse(oldest[times].scheduled_for));
    }
    const active = await strip.getAttribute('aria-activedescendant');
    assert.equal(await page.locator(`#${active}`).getAttribute('aria-selected'), 'true');
    await page
      .locator('[data-chosen]')
      .getByText(oldest[at].reason ?? /Ran/)
      .first()
      .waitFor();
    await page.keyboard.press('Enter');
    await page.waitForURL(`**/tasks/moody/runs/${oldest[at].run}`);
  });

  test('a finger chooses the nearest', async () => {
    const page = await open('/tasks/moody', { viewport: PHONE, hasTouch: true });
    await settled(page);
    const cell = page.locator('[data-slot="ran"], [data-slot="late"], [data-slot="failed"]').nth(2);
    await cell.scrollIntoViewIfNeeded();
    const box = await cell.boundingBox();
    await page.touchscreen.tap(box.x + box.width / 2, box.y - 3);
    await cell.and(page.locator('[aria-selected="true"]')).waitFor();
    await page.getByRole('link', { name: 'Its run' }).waitFor();
  });
});

describe('the week to come', () => {
  test('it is side by side on a desk and one day below the other in the hand', async () => {
    const page = await open('/');
    await page.getByRole('link', { name: 'Calendar' }).click();
    await page.waitForURL('**/calendar');
    await page.locator('[data-day]').nth(6).waitFor();
    const boxes = () =>
      page.locator('[data-day]').evaluateAll((all) => all.map((one) => one.getBoundingClientRect().toJSON()));
    const wide = await boxes();
    assert.equal(wide.length, 7);
    assert.ok(
      wide.every(({ top }, at) => at === 0 || top === wide[0].top),
      'in one row',
    );
    const tomorrow = page.locator('[data-day]').nth(1);
    await tomorrow.getByRole('link', { name: /Heartbeat Every minute, 1,440 times/ }).waitFor();
    await tomorrow.getByText('02:30').waitFor();
    await tomorrow.getByRole('link', { name: 'Nightly backup' }).waitFor();
    await isFitEverywhere(page);
    await page.setViewportSize(PHONE);
    const narrow = await boxes();
    assert.ok(
      narrow.every(({ top, left }, at) => at === 0 || (top > narrow[at - 1].top && left === narrow[0].left)),
    );
  });

  test('a task that is paused meanwhile goes from it', async () => {
    const page = await open('/calendar');
    await page.getByRole('link', { name: 'Nightly backup' }).first().waitFor();
    await server.call('POST', '/tasks/nightly/pause', {});
    await page.getByRole('link', { name: 'Nightly backup' }).first().waitFor({ state: 'detached' });
    await server.call('POST', '/tasks/nightly/resume', {});
    await page.getByRole('link', { name: 'Nightly backup' }).first().waitFor();
  });
});

describe('the form', () => {
  const field = (page, name) => page.locator(`[data-field="${name}"]`);

  test('a task is added by the keyboard alone, with its next times before it is saved', async () => {
    const page = await open('/new');
    await page.getByLabel('Title').focus();
    await page.keyboard.type('Is the shop up');
    await page.getByLabel('Shell command').focus();
    await page.keyboard.type('true');
    await page.getByLabel('It runs').focus();
    await page.keyboard.press('ArrowDown');
    await page.getByLabel('Cron expression').focus();
    await page.keyboard.type('30 2 28 3 *');
    await page.keyboard.press('Tab');
    await page.keyboard.type('Europe/Berlin');
    const preview = page.locator('[data-preview]');
    // 2027, when the clock goes forward on that day; the year after it does not.
    await preview.getByText('UTC+02:00').first().waitFor();
    await preview.getByText('clock goes forward: moved from 02:30').waitFor();
    await preview.getByText('Europe/Berlin').first().waitFor();
    await isFitEverywhere(page);
    await page.getByLabel('Title').focus();
    await page.keyboard.press('Enter');
    await page.waitForURL('**/tasks/is-the-shop-up');
    const made = await server.call('GET', '/tasks/is-the-shop-up');
    assert.deepEqual(made.schedule, { cron: '30 2 28 3 *', tz: 'Europe/Berlin' });
    assert.equal(made.definition.steps[0].run, 'true');
    await page.getByRole('listitem').getByText('Skips if the last run is still going').waitFor();
  });

  test('what the server refuses stands at its field before it is saved, for every rule there is', async () => {
    await server.call('POST', '/tasks', {
      id: 'ruled',
      title: 'Ruled',
      steps: [{ run: 'true' }],
      run: false,
      policy: { overlap: 'queue', catchup: 'all' },
    });
    const { policy } = await server.call('GET', '/tasks/ruled');
    const page = await open('/tasks/ruled/edit');
    await field(page, 'policy.timeout').waitFor();
    const bad = (key) => {
      const [table, within, name] = key.split('.');
      const value = ['retry_on', 'channels'].includes(within) ? ['never', 'ever'] : 'never ever';
      const inner = { [within]: name === undefined ? value : { [name]: value } };
      return { [table]: table === 'policy' ? { ...policy, ...inner } : inner };
    };
    const rules = [...Object.keys(policy), 'keep.runs', 'keep.days', 'keep.events', 'keep.bytes'];
    for (const key of [...rules.map((rule) => `policy.${rule}`), 'notify.channels']) {
      const control = field(page, key).locator('input, select');
      await control.waitFor();
      if ((await control.evaluate((one) => one.tagName)) === 'SELECT') continue;
      const before = await control.inputValue();
      await control.fill('never ever');
      await control.blur();
      const wrong = field(page, key).locator('.wrong');
      await wrong.waitFor();
      assert.equal(await control.getAttribute('aria-invalid'), 'true');
      const told = await control.getAttribute('aria-describedby');
      assert.ok(told.split(' ').includes(await wrong.getAttribute('id')), key);
      // The words are the server's own.
      const answer = await fetch(`${server.base}/api/v1/tasks/ruled?dry_run=true`, {
        method: 'PATCH',
        headers: { Authorization: `Bearer ${server.token}`, 'Content-Type': 'application/json' },
        body: JSON.stringify(bad(key)),
      });
      const { errors } = await answer.json();
      assert.equal(await wrong.textContent(), errors[0].message, key);
      await control.fill(before);
      await wrong.waitFor({ state: 'detached' });
    }
    await isFitEverywhere(page);
    // Saved with something wrong: nothing is changed, and the field has the focus.
    await field(page, 'policy.timeout').locator('input').fill('soon');
    await page.getByRole('button', { name: 'Save' }).click();
    await page.getByText('Not saved: see what is marked.').waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), 'field-policy.timeout');
    await field(page, 'policy.timeout').locator('input').fill('45m');
    await field(page, 'policy.keep.runs').locator('input').fill('30');
    await field(page, 'policy.keep.bytes').locator('input').fill('200 MiB');
    await page.getByRole('button', { name: 'Save' }).click();
    await page.waitForURL('**/tasks/ruled');
    const changed = await server.call('GET', '/tasks/ruled');
    assert.deepEqual(changed.policy, { ...policy, timeout: '45m', keep: { runs: 30, bytes: 209_715_200 } });
    await page.getByText('Ends after 45 min at the latest').waitFor();
    await page.getByText('Keeps at most 30 runs and 200.0 MiB').waitFor();
    // What is emptied is the server's to say again.
    await page.goto(`${server.base}/tasks/ruled/edit`);
    await field(page, 'policy.keep.runs').locator('input').fill('');
    await field(page, 'policy.keep.bytes').locator('input').fill('');
    await page.getByRole('button', { name: 'Save' }).click();
    await page.waitForURL('**/tasks/ruled');
    assert.deepEqual((await server.call('GET', '/tasks/ruled')).policy, { ...policy, timeout: '45m' });
  });

  test('a wrong schedule is told while it is typed, and a field nobody was in is left alone', async () => {
    const page = await open('/new');
    await page.getByLabel('It runs').selectOption('cron');
    await page.getByLabel('Cron expression').fill('0 0 31 2 *');
    await field(page, 'schedule.cron').getByText('is a date that never comes').waitFor();
    assert.equal(await page.locator('[data-preview]').count(), 0);
    await page.getByLabel('Cron expression').fill('0 0 28 2 *');
    await page.getByLabel('Time zone').fill('Europe/Berlinn');
    await field(page, 'schedule.tz').getByText('did you mean "Europe/Berlin"').waitFor();
    assert.equal(await field(page, 'title').locator('.wrong').count(), 0);
    await page.getByLabel('It runs').selectOption('every');
    await page.getByLabel('Distance').fill('0s');
    await field(page, 'schedule.every').locator('.wrong').waitFor();
    await isFitToBeSeen(page);
    await page.getByRole('button', { name: 'Add the task' }).click();
    await field(page, 'title').locator('.wrong').waitFor();
    // What was typed outlives a reload, until it is thrown away.
    await until('it to be kept', async () => {
      // Typed again where the page went before the browser had written it down.
      await page.getByLabel('Title').fill('Half a task');
      await page.reload();
      await page.getByText('What you had typed before is still here.').waitFor();
      return (await page.getByLabel('Title').inputValue()) === 'Half a task';
    });
    await page.getByRole('button', { name: 'Throw it away' }).click();
    await page.waitForURL(`${server.base}/`);
    await page.getByRole('link', { name: 'Add a task' }).click();
    assert.equal(await page.getByLabel('Title').inputValue(), '');
  });

  test('a task that is a file is shown and not changed, says why, and is exported whole', async () => {
    const page = await open('/tasks/finds');
    await page.getByRole('link', { name: 'Set-up' }).click();
    await page.getByText('This task is the file finds.toml in the folder of tasks.').waitFor();
    assert.equal(await page.locator('form :is(input, select, textarea, button):enabled').count(), 0);
    assert.equal(await page.getByRole('button', { name: 'Save' }).count(), 0);
    await isFitEverywhere(page);
    const [download] = await Promise.all([
      page.waitForEvent('download'),
      page.getByRole('link', { name: 'Export as a file' }).click(),
    ]);
    assert.equal(download.suggestedFilename(), 'finds.toml');
    const file = path.join(server.folder, 'exported.toml');
    await writeFile(file, await readFile(await download.path()), { mode: 0o600 });
    const read = execFileSync('python3', [
      '-c',
      'import json, sys, tomllib; print(json.dumps(tomllib.load(open(sys.argv[1], "rb"))))',
      file,
    ]);
    const { definition } = await server.call('GET', '/tasks/finds');
    assert.deepEqual(JSON.parse(read), definition);
    await page.getByRole('link', { name: 'Make a task like it' }).click();
    await page.waitForURL('**/new/finds');
    await page.getByLabel('Title').waitFor();
    assert.equal(await page.getByLabel('Title').inputValue(), 'Certificates (copy)');
    assert.equal(await page.locator('[data-locked]').count(), 0);
  });
});

describe('a run that waits', () => {
  test('its page says which in line it is', async () => {
    const runs = [];
    for (let n = 0; n < 3; n += 1) runs.push((await server.startRun('slow')).id);
    const page = await open(`/tasks/slow/runs/${runs[2]}`, { viewport: PHONE });
    await settled(page);
    await page.locator('[data-waits]').getByText('Second in line').waitFor();
    await server.call('POST', `/runs/${runs[1]}/stop`, {});
    await page
      .locator('[data-waits]')
      .getByText(/First in line|Waits for the run before it/)
      .waitFor();
    for (const run of [runs[2], runs[0]]) await server.call('POST', `/runs/${run}/stop`, {});
  });
});
