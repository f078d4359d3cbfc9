// The page against a real server: what a person sees when the connection comes and goes.

import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import {
  DESKTOP,
  PHONE,
  Stage,
  applied,
  back,
  countingTask,
  heldTask,
  isFitToBeSeen,
  settled,
  shownSeqs,
  signIn,
  sleep,
  state,
  until,
  watched,
} from './harness.mjs';

const stage = new Stage();
let server;
let wire;

before(async () => {
  ({ server, wire } = await stage.serveAll({
    tasks: {
      counting: heldTask(),
      long: countingTask(400, 0.25, 'Long counting'),
      short: countingTask(3, 0.1, 'Short counting'),
      held: heldTask('Held counting'),
      broken: 'title = "Broken"\nagent = "steps"\n\n[policy]\noverlp = "skip"\n',
    },
  }));
});

async function stopAll(task) {
  for (const run of (await server.call('GET', `/tasks/${task}/runs`)).items) {
    if (!run.ended_at) {
      await server.call('POST', `/runs/${run.id}/stop`).catch(() => {});
      await server.ended(run);
    }
  }
}

/** The page shows the whole log of the task, each event once. */
async function showsEverythingOnce(page, task, run) {
  const log = (await server.events(task)).filter((event) => event.run === run.id);
  await until('the page to have the last event', async () => (await applied(page)) >= log.at(-1).seq);
  await sleep(300);
  const { seqs, twice } = await shownSeqs(page);
  assert.deepEqual(twice, [], 'shown twice');
  const wanted = log.map((event) => event.seq);
  assert.deepEqual(
    seqs.filter((seq) => seq >= wanted[0]),
    wanted,
  );
}

/** Where the page stands once it moves no more: what a wheel turns is scrolled over several frames. */
const restsAt = (page) =>
  page.evaluate(async () => {
    let before = NaN;
    for (let same = 0; same < 5;) {
      await new Promise((resolve) => requestAnimationFrame(resolve));
      same = window.scrollY === before ? same + 1 : 0;
      before = window.scrollY;
    }
    return before;
  });

describe('signing in', () => {
  test('T-23: a link signs in, and its code is gone from the address at once', async () => {
    const { page } = await stage.open();
    const addresses = [];
    page.on('framenavigated', (frame) => addresses.push(frame.url()));
    await signIn(page, server);
    assert.equal(new URL(page.url()).hash, '');
    assert.equal(await page.evaluate(() => localStorage.length + sessionStorage.length), 0);
  });

  test('a wrong code is told in plain words', async () => {
    const { page } = await stage.open();
    await page.goto(`${server.base}/#code=notacode`);
    await page.getByRole('alert').filter({ hasText: 'was not accepted' }).waitFor();
    assert.equal(new URL(page.url()).hash, '');
  });

  test('a page without a session says how to get one, and takes a token', async () => {
    const { page } = await stage.open();
    await page.goto(server.base);
    await page.getByText('rejoin open').waitFor();
    const field = page.getByLabel('Or paste its code, or a token');
    assert.equal(await field.getAttribute('type'), 'password');
    assert.equal(await field.getAttribute('autocomplete'), 'off');
    await field.fill('wrong');
    await page.getByRole('button', { name: 'Sign in' }).click();
    await page.getByRole('alert').waitFor();
    await field.fill(server.token);
    await page.getByRole('button', { name: 'Sign in' }).click();
    await state(page, 'connected');
    await page.getByRole('link', { name: 'Long counting' }).waitFor();
  });

  test('signing out ends the live view', async () => {
    const { page } = await stage.open();
    await signIn(page, server);
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByRole('heading', { name: 'Sign in' }).waitFor();
    await page.reload();
    await page.getByRole('heading', { name: 'Sign in' }).waitFor();
  });
});

describe('the overview', () => {
  test('it shows a run that begins and one that ends without being asked', async () => {
    const { page } = await stage.open();
    await signIn(page, server);
    const line = page.locator('[data-task="held"]');
    const run = await server.startRun('held');
    await line.getByText('Running').waitFor({ timeout: 10_000 });
    await server.letEnd(run);
    await line.getByText('Succeeded').waitFor({ timeout: 10_000 });
  });

  test('a task file with an error is shown with file, line and message', async () => {
    const { page } = await stage.open();
    await signIn(page, server);
    const line = page.locator('[data-task="broken"]');
    await line.getByText('broken.toml').waitFor();
    await line.getByText('overlp').first().waitFor();
  });
});

describe('a run under way', () => {
  test('SPK-27: it is shown live', async () => {
    const run = await server.startRun('counting');
    const { page } = await stage.open();
    await signIn(page, server, server.base, '/tasks/counting');
    await settled(page);
    await page.getByText('line 5', { exact: false }).first().waitFor();
    await isFitToBeSeen(page);
    const before = await applied(page);
    await until('more events', async () => (await applied(page)) > before + 3);
    await server.letEnd(run);
    await showsEverythingOnce(page, 'counting', run);
  });

  test('SPK-01: a refresh in the middle goes on and shows every event once', async () => {
    const run = await server.startRun('counting');
    const { page } = await stage.open();
    await signIn(page, server, server.base, '/tasks/counting');
    await page.getByText('line 5', { exact: false }).first().waitFor();
    await page.reload();
    await settled(page);
    await server.letEnd(run);
    await showsEverythingOnce(page, 'counting', run);
  });

  test('SPK-15: three refreshes within ten seconds lose and double nothing', async () => {
    const run = await server.startRun('counting');
    const { page } = await stage.open();
    await signIn(page, server, server.base, '/tasks/counting');
    for (let times = 0; times < 3; times += 1) {
      await sleep(800);
      await page.reload({ waitUntil: 'commit' });
    }
    await settled(page);
    await server.letEnd(run);
    await showsEverythingOnce(page, 'counting', run);
  });

  test('a tab that was closed is made up for by a new one', async () => {
    const run = await server.startRun('counting');
    const { page, context } = await stage.open();
    await signIn(page, server, server.base, '/tasks/counting');
    await page.getByText('line 3', { exact: false }).first().waitFor();
    await page.close();
    await sleep(3_000);
    const next = await watched(context);
    await next.goto(`${server.base}/tasks/counting`);
    await settled(next);
    assert.equal((await server.runOf(run.id)).state, 'running');
    await server.letEnd(run);
    await showsEverythingOnce(next, 'counting', run);
    assert.deepEqual(next.complaints, []);
  });

  test('SPK-35: two tabs both get everything', async () => {
    const run = await server.startRun('counting');
    const first = await stage.open();
    const second = await stage.open();
    for (const { page } of [first, second]) await signIn(page, server, server.base, '/tasks/counting');
    await server.letEnd(run);
    for (const { page } of [first, second]) await showsEverythingOnce(page, 'counting', run);
  });

  test('the address of a run shows that run alone', async () => {
    const run = await server.startRun('short');
    await server.ended(run);
    await server.finish('short');
    const { page } = await stage.open();
    await signIn(page, server, server.base, `/tasks/short/runs/${run.id}`);
    await page.locator('.out', { hasText: 'the end' }).waitFor();
    const shown = await page.locator('[data-run]').evaluateAll((all) => all.map((one) => one.dataset.run));
    assert.deepEqual(shown, [run.id]);
  });

  test('Run now, and Stop at once', async () => {
    const { page } = await stage.open();
    await signIn(page, server, server.base, '/tasks/long');
    await page.getByRole('button', { name: 'Run now' }).click();
    await page.getByRole('button', { name: 'Stop', exact: true }).first().click();
    await page.locator('[data-state="cancelled"]').first().waitFor({ timeout: 15_000 });
  });
});

describe('a connection that is lost', () => {
  for (const how of ['fin', 'rst']) {
    test(`SPK-37, PER-06, SWE-13: cut by ${how}: it counts down, comes back and says how much it caught up on`, async () => {
      const run = await server.startRun('counting');
      const { page } = await stage.open();
      await page.addInitScript(() => {
        Math.random = () => 0.9;
      });
      await signIn(page, server, wire.base, '/tasks/counting');
      await settled(page);
      await page.getByText('line 4', { exact: false }).first().waitFor();
      wire.cut(how);
      await state(page, 'reconnecting');
      await page.getByText(/Next try in \d+ s/).waitFor();
      await page.getByRole('button', { name: 'Retry now' }).waitFor();
      await isFitToBeSeen(page);
      await sleep(1_000);
      // It goes by itself after six seconds, so it is looked for from before it can be there.
      const told = page.getByText(/Caught up on \d+ events?/).waitFor({ timeout: 60_000 });
      const isBack = async () => {
        await back(page, wire);
        await page.getByRole('region', { name: 'Connection' }).waitFor({ state: 'hidden', timeout: 15_000 });
      };
      await Promise.all([told, isBack()]);
      await server.letEnd(run);
      await showsEverythingOnce(page, 'counting', run);
    });
  }

  test('NAM-40, T-05: a connection that silently died is found out when the page wakes up', async () => {
    const { page } = await stage.open();
    await signIn(page, server, wire.base);
    wire.cut('blackhole');
    const since = Date.now();
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await state(page, 'reconnecting');
    // A line on which nothing comes is known for dead after 35 seconds: before, nothing but the question tells.
    assert.ok(Date.now() - since < 20_000);
    wire.mend();
    await state(page, 'connected', 40_000);
  });

  test('SWE-12: after ten tries it says so, and Retry brings it back', async () => {
    const { page } = await stage.open();
    await page.addInitScript(() => {
      Math.random = () => 0.001;
    });
    await signIn(page, server, wire.base);
    wire.cut('rst');
    await state(page, 'failed');
    await page.getByText('Connection failed').first().waitFor();
    await page.getByText(/Next look in \d+ s/).waitFor();
    await isFitToBeSeen(page);
    wire.mend();
    await page.getByRole('button', { name: 'Retry' }).click();
    await state(page, 'connected');
  });

  test('what is being read stays where it is over a reconnect', async () => {
    const run = await server.startRun('long');
    const { page } = await stage.open({ viewport: PHONE });
    await signIn(page, server, wire.base, '/tasks/long');
    await settled(page);
    await page.getByText('line 12', { exact: false }).first().waitFor();
    await page.mouse.wheel(0, -5_000);
    await page.getByRole('button', { name: /new$/ }).waitFor();
    const before = await restsAt(page);
    wire.cut('rst');
    await state(page, 'reconnecting');
    await sleep(1_500);
    wire.mend();
    await state(page, 'connected');
    await page.getByText(/Caught up on/).waitFor();
    assert.equal(await page.evaluate(() => window.scrollY), before);
    await page.getByRole('button', { name: /new$/ }).click();
    await until('the end', () =>
      page.evaluate(() => {
        const { scrollHeight } = document.documentElement;
        return window.scrollY + window.innerHeight > scrollHeight - 80;
      }),
    );
    await server.call('POST', `/runs/${run.id}/stop`);
    await server.ended(run);
  });

  test('PER-10: Stop works after a reconnect', async () => {
    const run = await server.startRun('long');
    const { page } = await stage.open();
    await signIn(page, server, wire.base, '/tasks/long');
    await settled(page);
    wire.cut('rst');
    await state(page, 'reconnecting');
    wire.mend();
    await state(page, 'connected');
    await page.getByRole('button', { name: 'Stop', exact: true }).first().click();
    assert.equal((await server.ended(run)).state, 'cancelled');
    await page.locator(`[data-run="${run.id}"][data-state="cancelled"]`).waitFor();
    await until(
      'no more Stop',
      async () => (await page.getByRole('button', { name: 'Stop', exact: true }).count()) === 0,
    );
  });

  test('T-09: a server that was killed and started again is rejoined with nothing lost or doubled', async () => {
    const { page } = await stage.open();
    const run = await server.startRun('short');
    await server.ended(run);
    await signIn(page, server, server.base, '/tasks/short');
    await settled(page);
    await server.halt('SIGKILL');
    await state(page, 'reconnecting');
    await server.run();
    const second = await server.startRun('short');
    await state(page, 'connected', 40_000);
    await server.ended(second);
    await showsEverythingOnce(page, 'short', second);
  });
});

describe('looks and manners', () => {
  const places = [
    ['the overview', '/'],
    ['a task', '/tasks/short'],
    ['sign-in', null],
  ];

  before(async () => {
    await stopAll('long');
    await server.finish('short');
  });

  async function visit(page, where) {
    if (where === null) {
      await page.goto(server.base);
      await page.getByRole('heading', { name: 'Sign in' }).waitFor();
      return;
    }
    await signIn(page, server, server.base, where);
    if (where !== '/') await settled(page);
    await sleep(400);
  }

  for (const [name, where] of places) {
    for (const [kind, viewport] of Object.entries({ phone: PHONE, desktop: DESKTOP })) {
      test(`${name} has no serious accessibility fault on a ${kind}, dark and light`, async () => {
        const { page } = await stage.open({ viewport });
        await visit(page, where);
        await isFitToBeSeen(page);
      });
    }
  }

  for (const [name, where] of places) {
    test(`${name} fits a phone: no sideways scroll, nothing too small to hit`, async () => {
      const { page } = await stage.open({ viewport: PHONE });
      await visit(page, where);
      const found = await page.evaluate(() => ({
        width: document.documentElement.scrollWidth,
        small: [...document.querySelectorAll('a, button, input, summary, [role=button]')]
          .filter((one) => one.checkVisibility() && !one.matches('.skip'))
          .map((one) => {
            // A link whose ::after covers its line is as large as the line.
            const line = one.closest('.line') ?? one;
            const { width, height } = line.getBoundingClientRect();
            return { what: one.textContent.trim() || one.tagName, width, height };
          })
          .filter(({ width, height }) => width > 0 && (width < 44 || height < 44)),
      }));
      assert.ok(found.width <= PHONE.width, `the page is ${found.width} px wide`);
      assert.deepEqual(found.small, []);
    });
  }

  test('the first load is small: less than 120 kB in all', async () => {
    const { page } = await stage.open();
    const sizes = [];
    page.on('response', (answer) => sizes.push(answer.request().sizes()));
    await page.goto(server.base);
    await page.getByRole('heading', { name: 'Sign in' }).waitFor();
    const all = (await Promise.all(sizes)).reduce((sum, one) => sum + one.responseBodySize, 0);
    assert.ok(all > 10_000 && all < 120_000, `${all} bytes`);
  });

  test('dark and light are what the system asks for', async () => {
    const colours = {};
    for (const colorScheme of ['dark', 'light']) {
      const { page } = await stage.open({ colorScheme });
      await page.goto(server.base);
      await page.getByRole('heading', { name: 'Sign in' }).waitFor();
      colours[colorScheme] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    }
    assert.equal(colours.dark, 'rgb(14, 18, 19)');
    assert.equal(colours.light, 'rgb(246, 247, 247)');
  });

  test('everything can be reached by keyboard, the content first', async () => {
    const { page } = await stage.open();
    await signIn(page, server);
    await page.getByRole('link', { name: 'Short counting' }).waitFor();
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Skip to the content');
    await page.getByRole('link', { name: 'Short counting' }).focus();
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { level: 1, name: 'Short counting' }).waitFor();
  });
});
