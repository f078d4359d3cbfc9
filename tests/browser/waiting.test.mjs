// What a person asks for while the line is bad: it is kept, shown, sent once, and never behind anybody's back.

import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import {
  Stage,
  countingTask,
  isFitToBeSeen,
  settled,
  signIn,
  sleep,
  state,
  until,
  watched,
} from './harness.mjs';

const stage = new Stage();
let server;
let wire;

const PARAMS = `title = "With parameters"
agent = "steps"

[params]
word = { default = "quiet", help = "What it says" }

[[steps]]
name = "say"
run = "echo it says $REJOIN_PARAM_WORD"
`;

before(async () => {
  ({ server, wire } = await stage.serveAll({
    tasks: {
      short: countingTask(2, 0.05, 'Short'),
      long: countingTask(400, 0.25, 'Long'),
      words: PARAMS,
      hidden: countingTask(2, 0.05, 'Hidden'),
      behind: countingTask(2, 0.05, 'Behind'),
    },
  }));
});

const runsOf = async (task) => (await server.call('GET', `/tasks/${task}/runs`)).items;

/** Commands and unsafe calls that leave the pages of a context, by the id under which they act once. */
function sends(context) {
  const sent = [];
  const listen = (page) => {
    page.on('websocket', (socket) =>
      socket.on('framesent', ({ payload }) => {
        const frame = JSON.parse(payload);
        if (frame.type === 'command') sent.push(frame.id);
      }),
    );
    page.on('request', (request) => {
      if (request.method() === 'POST' && request.url().includes('/runs')) {
        sent.push(request.headers()['idempotency-key']);
      }
    });
  };
  context.pages().forEach(listen);
  context.on('page', listen);
  return sent;
}

async function open(task, options) {
  const opened = await stage.open(options);
  const sent = sends(opened.context);
  await signIn(opened.page, server, wire.base, `/tasks/${task}`);
  await settled(opened.page);
  return { ...opened, sent };
}

async function another(context, where) {
  const page = await watched(context);
  await page.goto(wire.base + where);
  return page;
}

/** Everything that the browser keeps for this page. */
const keeps = (page) =>
  page.evaluate(async () => {
    const ask = (request) =>
      new Promise((done, failed) => {
        request.onsuccess = () => done(request.result);
        request.onerror = () => failed(request.error);
      });
    const all = { local: { ...localStorage }, session: { ...sessionStorage } };
    for (const { name } of await indexedDB.databases()) {
      const database = await ask(indexedDB.open(name));
      for (const store of database.objectStoreNames) {
        all[`${name}/${store}`] = await ask(database.transaction(store).objectStore(store).getAll());
      }
      database.close();
    }
    return all;
  });

const waiting = (page) => page.locator('[data-waiting]');

describe('what is asked for without a connection', () => {
  test('NAM-17, NAM-18, NAM-19, NAM-23, SWE-17: it waits in sight, arrives by itself, and so does the next, once each', async () => {
    const before = (await runsOf('short')).length;
    const { page } = await open('short');
    wire.cut('rst');
    await state(page, 'reconnecting');
    const press = page.getByRole('button', { name: 'Run now' });
    await press.click();
    await waiting(page).first().waitFor();
    assert.match(await waiting(page).innerText(), /Run “Short”.*Waits for the connection/s);
    await until('the button to be there again', () => press.isEnabled());
    await press.click();
    await until('both to wait', async () => (await waiting(page).count()) === 2);
    await isFitToBeSeen(page);
    assert.equal((await keeps(page))['rejoin/outbox'].length, 2);
    wire.mend();
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await until('both to have run', async () => {
      const runs = (await runsOf('short')).slice(0, -before || undefined);
      return runs.length === 2 && runs.every(({ state }) => state === 'succeeded');
    });
    await until('nothing to wait any more', async () => (await waiting(page).count()) === 0);
    assert.deepEqual((await keeps(page))['rejoin/outbox'], []);
    await sleep(1_000);
    assert.equal((await runsOf('short')).length, before + 2);
  });

  test('SWE-14, SWE-15, SWE-31: what waits survives the tab, and the next one sends it', async () => {
    const before = (await runsOf('short')).length;
    const { page, context, sent } = await open('short');
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run now' }).click();
    await waiting(page).first().waitFor();
    await page.close();
    wire.mend();
    const next = await another(context, '/');
    await state(next, 'connected');
    await until('it to have run', async () => (await runsOf('short')).length === before + 1);
    await sleep(500);
    assert.equal((await runsOf('short')).length, before + 1);
    assert.equal(new Set(sent).size, 1, 'always under the same id');
    assert.deepEqual(next.complaints, []);
  });

  test('T-19, SWE-16: what is too old is shown and not sent, until somebody says so', async () => {
    const before = (await runsOf('short')).length;
    const { page, context } = await open('short');
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run now' }).click();
    await waiting(page).first().waitFor();
    // Left before it is closed: a tab may outlive its close for a moment, and would send what is not old yet.
    await page.goto('about:blank');
    await page.close();
    wire.mend();
    const next = await watched(context);
    await next.addInitScript(() => {
      const { now } = Date;
      Date.now = () => now() + 2 * 3_600_000;
    });
    await next.goto(`${wire.base}/`);
    await next.locator('[data-waiting="expired"]').waitFor();
    // Until the list of tasks is there a task goes by its id.
    const words = /Run “Short”.*2 h ago.*Too old to be sent/s;
    await until('it to be named', async () => words.test(await waiting(next).innerText()));
    await isFitToBeSeen(next);
    await sleep(1_500);
    assert.equal((await runsOf('short')).length, before, 'not behind anybody');
    await next.getByRole('button', { name: 'Send again' }).click();
    await until('it to run', async () => (await runsOf('short')).length === before + 1);
    await until('nothing to wait', async () => (await waiting(next).count()) === 0);
  });

  test('T-19: two tabs see what waits, and one of them sends it', async () => {
    const before = (await runsOf('short')).length;
    const { page, context, sent } = await open('short');
    const second = await another(context, '/tasks/short');
    await settled(second);
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run now' }).click();
    for (const tab of [page, second]) await waiting(tab).first().waitFor();
    await sleep(500);
    sent.length = 0;
    wire.mend();
    await second.evaluate(() => window.dispatchEvent(new Event('online')));
    await until('it to have run', async () => (await runsOf('short')).length === before + 1);
    for (const tab of [page, second]) {
      await until('nothing to wait', async () => (await waiting(tab).count()) === 0);
    }
    assert.equal(new Set(sent).size, 1);
    assert.ok(sent.length <= 2, `sent by one, at most once each way: ${sent.length}`);
    assert.equal((await runsOf('short')).length, before + 1);
  });

  test('it can be taken back, from any tab', async () => {
    const before = (await runsOf('short')).length;
    const { page, context } = await open('short');
    const second = await another(context, '/');
    await state(second, 'connected');
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run now' }).click();
    await second.getByRole('button', { name: 'Take back' }).click();
    await until('nothing to wait', async () => (await waiting(page).count()) === 0);
    wire.mend();
    await state(page, 'connected', 40_000);
    await sleep(1_000);
    assert.equal((await runsOf('short')).length, before);
  });

  test('its parameters can be changed before it is sent', async () => {
    const { page } = await open('words');
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run now' }).click();
    await page.getByRole('button', { name: 'Run with these' }).click();
    await waiting(page).first().waitFor();
    await page.getByRole('button', { name: 'Edit' }).click();
    const field = waiting(page).getByLabel('word');
    assert.equal(await field.inputValue(), 'quiet');
    await isFitToBeSeen(page);
    await field.fill('loud');
    await page.getByRole('button', { name: 'Send these instead' }).click();
    wire.mend();
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await page.locator('.out', { hasText: 'it says loud' }).waitFor();
    assert.deepEqual(
      (await runsOf('words')).map(({ params }) => params?.word),
      ['loud'],
    );
  });

  test('Stop waits too, and stops the run when it arrives', async () => {
    const run = await server.startRun('long');
    const { page } = await open('long');
    await page.getByText('line 2', { exact: false }).first().waitFor();
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Stop', exact: true }).first().click();
    await waiting(page).first().waitFor();
    wire.mend();
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await until('the run to end', async () => (await server.runOf(run.id)).state === 'cancelled', 30_000);
    await page.locator('[data-state="cancelled"]').first().waitFor();
    await until('nothing to wait', async () => (await waiting(page).count()) === 0);
  });
});

describe('what the browser keeps', () => {
  test('T-23, SWE-26: it is little, and no credential is in it', async () => {
    const { page, context } = await open('words');
    await page.getByRole('button', { name: 'Run now' }).click();
    await page.getByLabel('word').fill('typed');
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run with these' }).click();
    await waiting(page).first().waitFor();
    const kept = await keeps(page);
    assert.deepEqual([kept.local, kept.session], [{}, {}]);
    const text = JSON.stringify(kept);
    assert.ok(text.length < 2_000, text);
    assert.match(text, /typed/);
    for (const { value } of await context.cookies()) assert.ok(!text.includes(value), 'no cookie');
    assert.ok(!text.includes(server.token), 'no token');
    await page.getByRole('button', { name: 'Take back' }).click();
    await until('nothing to wait', async () => (await waiting(page).count()) === 0);
  });

  test('T-23, SWE-14: a full quota breaks nothing, and it is said how long things are kept', async () => {
    const before = (await runsOf('short')).length;
    const { page } = await stage.open();
    await page.addInitScript(() => {
      const { put } = IDBObjectStore.prototype;
      IDBObjectStore.prototype.put = function (...args) {
        const request = put.apply(this, args);
        this.transaction.abort();
        return request;
      };
    });
    await signIn(page, server, wire.base, '/tasks/short');
    await settled(page);
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run now' }).click();
    await page.getByText('only as long as this page is open').waitFor();
    wire.mend();
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await until('it to run', async () => (await runsOf('short')).length === before + 1);
    await until('nothing to wait', async () => (await waiting(page).count()) === 0);
  });

  test('T-23: a browser without any storage can do everything', async () => {
    const before = (await runsOf('short')).length;
    const { page } = await stage.open();
    await page.addInitScript(() => {
      Object.defineProperty(window, 'indexedDB', { get: () => undefined });
    });
    await signIn(page, server, wire.base, '/tasks/short');
    await settled(page);
    await page.getByRole('button', { name: 'Run now' }).click();
    await until('it to run', async () => (await runsOf('short')).length === before + 1);
  });

  test('signing out takes everything with it', async () => {
    const { page } = await open('words');
    await page.getByRole('button', { name: 'Run now' }).click();
    await page.getByLabel('word').fill('secret plans');
    await until('it to be kept', async () => JSON.stringify(await keeps(page)).includes('secret plans'));
    await page.goto(`${wire.base}/`);
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByRole('heading', { name: 'Sign in' }).waitFor();
    await until(
      'nothing to be kept',
      async () => !JSON.stringify(await keeps(page)).includes('secret plans'),
    );
  });
});

describe('a log that cannot be gone on with', () => {
  test('SWE-04, T-20: a task that is not there is told in plain words, with Retry and Start new, and nothing is made', async () => {
    const tasks = async () => (await server.call('GET', '/tasks')).items.map(({ id }) => id);
    const before = await tasks();
    const { page, context } = await stage.open();
    const sent = sends(context);
    await signIn(page, server, wire.base, '/tasks/gone');
    await page.getByRole('heading', { name: 'There is no task “gone”' }).waitFor();
    await page.getByRole('link', { name: 'Start new' }).waitFor();
    await isFitToBeSeen(page);
    await page.getByRole('button', { name: 'Retry' }).click();
    await page.getByRole('heading', { name: 'There is no task “gone”' }).waitFor();
    await page.reload();
    await page.getByRole('heading', { name: 'There is no task “gone”' }).waitFor();
    assert.deepEqual(await tasks(), before);
    assert.deepEqual(sent, []);
    await server.call('POST', '/tasks', {
      id: 'gone',
      title: 'There again',
      agent: 'steps',
      steps: [{ name: 'say', run: 'echo hello' }],
      run: false,
    });
    await page.getByRole('heading', { name: 'There again' }).waitFor();
    await server.call('DELETE', '/tasks/gone');
  });

  test('SWE-05, SWE-09, SWE-28: what was typed survives a lost connection, a replaced log and a reload', async () => {
    const make = () =>
      server.call('POST', '/tasks', {
        id: 'remade',
        title: 'Remade',
        agent: 'steps',
        params: { word: { default: 'quiet' } },
        steps: [{ name: 'say', run: 'echo $REJOIN_PARAM_WORD' }],
        run: false,
      });
    await make();
    const { page } = await open('remade');
    await page.getByRole('button', { name: 'Run now' }).click();
    const field = page.getByLabel('word');
    await field.fill('half a sentence');
    wire.cut('rst');
    await state(page, 'reconnecting');
    await server.call('DELETE', '/tasks/remade');
    await make();
    wire.mend();
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await state(page, 'connected');
    assert.equal(await field.inputValue(), 'half a sentence');
    await page.reload();
    await settled(page);
    await until('the form to be filled', async () => (await field.inputValue()) === 'half a sentence');
    await page.getByRole('button', { name: 'Run with these' }).click();
    await page.locator('.out', { hasText: 'half a sentence' }).waitFor();
    await page.reload();
    await settled(page);
    assert.equal(await field.count(), 0, 'what was sent is not typed any more');
  });
});

describe('coming back', () => {
  /** As a browser says it to a page that nobody sees, and to one that is seen again. */
  const see = (page, visibility) =>
    page.evaluate((visibility) => {
      Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => visibility });
      Object.defineProperty(document, 'hidden', { configurable: true, get: () => visibility === 'hidden' });
      document.dispatchEvent(new Event('visibilitychange'));
    }, visibility);

  test('NAM-01, PER-12: started, hidden, without a network, and back: the end is there', async () => {
    const { page } = await open('hidden');
    const run = await server.startRun('hidden');
    await see(page, 'hidden');
    wire.cut('blackhole');
    await server.ended(run);
    wire.mend();
    await see(page, 'visible');
    await page.locator(`[data-run="${run.id}"][data-state="succeeded"]`).waitFor({ timeout: 15_000 });
    await page.locator('.out', { hasText: 'the end' }).first().waitFor();
  });

  test('PER-13, NAM-15: other tabs and back: connected, up to date, and the log says how', async () => {
    const { page, context } = await open('behind');
    const said = [];
    page.on('console', (message) => said.push(message.text()));
    await see(page, 'hidden');
    const other = await watched(context);
    await other.goto('about:blank');
    await other.bringToFront();
    wire.cut('rst');
    await state(page, 'reconnecting');
    const run = await server.startRun('behind');
    await server.ended(run);
    wire.mend();
    await page.bringToFront();
    await see(page, 'visible');
    await state(page, 'connected', 15_000);
    await page.locator(`[data-run="${run.id}"][data-state="succeeded"]`).waitFor();
    for (const words of [
      'page -> active (visible)',
      'WS not connected - reconnecting',
      'reconnected - notifying listeners',
    ]) {
      assert.ok(
        said.some((line) => line.includes(words)),
        `${words}\n${said.join('\n')}`,
      );
    }
  });

  test('NAM-44: opening a task ends every sign of waiting', async () => {
    const { page } = await open('short');
    wire.cut('rst');
    await state(page, 'reconnecting');
    await page.getByRole('button', { name: 'Run now' }).click();
    await page.getByRole('link', { name: 'Tasks', exact: true }).click();
    await page.getByRole('link', { name: 'With parameters' }).click();
    const press = page.getByRole('button', { name: 'Run now' });
    assert.equal(await press.isEnabled(), true, 'what waits for another task is not in the way');
    wire.mend();
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await settled(page);
    assert.equal(await page.getByText('Loading the timeline').count(), 0);
    assert.equal(await page.getByText('Starting …').count(), 0);
    assert.equal(await press.isEnabled(), true);
  });
});
