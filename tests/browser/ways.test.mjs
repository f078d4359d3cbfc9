// The ways between a page and its server: one socket for all tabs, and what is left where WebSockets are blocked. And
// the client by itself: its examples, as they stand in its README.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, symlink, mkdir } from 'node:fs/promises';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  Ear,
  STREAM,
  Stage,
  UPGRADE,
  applied,
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

const SDK = fileURLToPath(new URL('../../web/sdk/', import.meta.url));

// A name that is no loopback has no secure context without TLS, and so no locks.
const stage = new Stage('--host-resolver-rules=MAP rejoin.test 127.0.0.1');
let server;
let wire;

/** Of a task of its own for each test, so that nothing of another is in it. */
const COUNTED = ['three', 'closed', 'crashed', 'frozen', 'streamed'];
/** ... and of those in which the run is stopped, whenever that comes. */
const HELD = ['paged', 'worker'];

before(async () => {
  ({ server, wire } = await stage.serveAll({
    tasks: {
      ...Object.fromEntries(COUNTED.map((name) => [name, countingTask(24, 0.25, name)])),
      ...Object.fromEntries(HELD.map((name) => [name, heldTask(name)])),
      'smart-maintenance': await readFile(
        new URL('../../tasks/smart-maintenance.toml', import.meta.url),
        'utf8',
      ),
      speaking: `title = "Speaking"\nagent = "echo_model"\n\n[params]\nscript = { default = "" }\n`,
    },
    config: 'allowed_hosts = ["rejoin.test"]\n',
  }));
});

async function open(task, base = wire.base) {
  const opened = await stage.open();
  const ear = new Ear(opened.context, task);
  await signIn(opened.page, server, base, `/tasks/${task}`);
  await settled(opened.page);
  return { ...opened, ear };
}

async function tabOf(context, task, base = wire.base) {
  const page = await watched(context);
  await page.goto(`${base}/tasks/${task}`);
  await settled(page);
  return page;
}

/** A tab that had no turn for two seconds is taken the connection from, so for a moment there may be one more. */
const sockets = (count, what = `${count} sockets in all`) =>
  until(what, async () => (await server.call('GET', '/status')).connections === count);

/** The page has the whole log of the task, and shows each event once. */
async function isWhole(page, task) {
  const log = await server.events(task);
  // What nobody looks at is not drawn.
  await page.bringToFront();
  await until('the page to have the last event', async () => (await applied(page)) >= log.at(-1).seq);
  await sleep(300);
  const { seqs, twice } = await shownSeqs(page);
  assert.deepEqual(twice, [], 'shown twice');
  assert.deepEqual(
    seqs,
    log.map(({ seq }) => seq),
  );
}

describe('one socket for all tabs', () => {
  test('SWE-40: three tabs of a browser have one connection, and each shows everything', async () => {
    const { page, context, ear } = await open('three');
    const tabs = [page, await tabOf(context, 'three'), await tabOf(context, 'three')];
    const run = await server.startRun('three');
    for (const tab of tabs) await tab.getByText('line 3', { exact: false }).first().waitFor();
    await sockets(1);
    await server.ended(run);
    for (const tab of tabs) await isWhole(tab, 'three');
    assert.deepEqual(ear.faults, []);
    const other = await open('three', server.base);
    await sockets(2, 'another browser to have its own');
    assert.equal(await other.page.locator('[data-connection="connected"]').count(), 1);
  });

  for (const [how, task] of [
    ['closed', 'closed'],
    ['killed', 'crashed'],
  ]) {
    test(`when the tab that holds it is ${how}, another takes over and nothing is lost or doubled`, async () => {
      const { page, context } = await open(task);
      const others = [await tabOf(context, task), await tabOf(context, task)];
      const run = await server.startRun(task);
      for (const tab of others) await tab.getByText('line 3', { exact: false }).first().waitFor();
      if (how === 'closed') await page.close();
      else await page.goto('chrome://crash').catch(() => {});
      for (const tab of others) {
        await until('it to go on', async () => (await tab.getByText('line 9', { exact: false }).count()) > 0);
        await state(tab, 'connected');
      }
      await sockets(1);
      await server.ended(run);
      for (const tab of others) {
        await isWhole(tab, task);
        assert.deepEqual(tab.complaints, []);
      }
    });
  }

  test('one that is frozen is taken from, when another tab is looked at', async () => {
    const { page, context } = await open('frozen');
    const other = await tabOf(context, 'frozen');
    const devtools = await context.newCDPSession(page);
    await devtools.send('Debugger.enable');
    // Stopped at the next line that it runs, as a browser stops a tab that it freezes: it has its lock and says nothing.
    const paused = new Promise((resolve) => devtools.once('Debugger.paused', resolve));
    await devtools.send('Debugger.pause');
    const line = page.evaluate(() => document.title);
    await paused;
    const run = await server.startRun('frozen');
    await other.evaluate(() => window.dispatchEvent(new Event('online')));
    await other.getByText('line 4', { exact: false }).first().waitFor({ timeout: 20_000 });
    await devtools.send('Debugger.disable');
    await line;
    await server.ended(run);
    await isWhole(other, 'frozen');
    await isWhole(page, 'frozen');
    await sockets(1);
  });

  test('where there are no locks a shared worker holds it', async () => {
    const base = `http://rejoin.test:${server.port}`;
    const { page, context } = await open('worker', base);
    assert.equal(
      await page.evaluate(() => [window.isSecureContext, 'locks' in navigator].join()),
      'false,false',
    );
    const other = await tabOf(context, 'worker', base);
    const run = await server.startRun('worker');
    for (const tab of [page, other]) await tab.getByText('line 3', { exact: false }).first().waitFor();
    await sockets(1);
    await page.getByRole('button', { name: 'Stop', exact: true }).first().click();
    await until('the run to end', async () => (await server.runOf(run.id)).state === 'cancelled');
    for (const tab of [page, other]) await isWhole(tab, 'worker');
    await page.close();
    await other.reload();
    await settled(other);
    await sockets(1);
    // Of such an origin the browser says so itself.
    const expected = (text) => text.includes('Cross-Origin-Opener-Policy header has been ignored');
    for (const tab of [page, other]) tab.complaints = tab.complaints.filter((text) => !expected(text));
    assert.deepEqual(other.complaints, []);
  });
});

describe('where WebSockets are blocked', () => {
  test('NAM-46: events come as a stream, and over a socket again as soon as one gets through', async () => {
    wire.blocked = UPGRADE;
    const { page, ear } = await open('streamed');
    await page.locator('[data-transport="sse"]').waitFor();
    await isFitToBeSeen(page);
    const run = await server.startRun('streamed');
    await page.getByText('line 3', { exact: false }).first().waitFor();
    assert.deepEqual(
      ear.sockets.filter(({ subscribed }) => subscribed.length > 0),
      [],
    );
    wire.cut('rst', 'pass');
    await until(
      'it to come back',
      async () => (await page.getByText('line 9', { exact: false }).count()) > 0,
    );
    wire.blocked = null;
    await page.evaluate(() => window.dispatchEvent(new Event('online')));
    await until('a socket', async () => (await page.locator('[data-transport]').count()) === 0, 60_000);
    await state(page, 'connected');
    await server.ended(run);
    await isWhole(page, 'streamed');
    assert.ok(ear.sockets.some(({ subscribed }) => subscribed.length > 0));
    assert.deepEqual(ear.faults, []);
  });

  test('where streams are blocked as well pages are asked for, and nothing is missing', async () => {
    wire.blocked = new RegExp(`${UPGRADE.source}|${STREAM.source}`, 'im');
    const { page } = await open('paged');
    await page.locator('[data-transport="pages"]').waitFor({ timeout: 30_000 });
    await page.getByRole('button', { name: 'Run now' }).click();
    await page.getByText('line 3', { exact: false }).first().waitFor();
    await page.getByRole('button', { name: 'Stop', exact: true }).first().click();
    await page.locator('[data-state="cancelled"]').first().waitFor({ timeout: 20_000 });
    await isWhole(page, 'paged');
  });
});

describe('a text while it is written', () => {
  test('PER-16: it grows word by word, and the finished one replaces it', async () => {
    const folder = await mkdtemp(path.join(tmpdir(), 'rejoin-words-'));
    const gate = path.join(folder, 'go');
    const { page } = await open('speaking', server.base);
    const script = [
      ['delta', 'k', 'Naïve 👋🏽 '],
      ['delta', 'k', 'wör'],
      ['wait', gate],
      ['delta', 'k', 'ds'],
      ['wait', `${gate}2`],
      ['thought', 'k', 'Naïve 👋🏽 words, finished.'],
    ];
    await server.startRun('speaking', { script: script.map((line) => JSON.stringify(line)).join('\n') });
    const draft = page.locator('[data-draft="k"]');
    await until('the first words', async () => (await draft.allInnerTexts())[0] === 'Naïve 👋🏽 wör');
    // Whoever comes later has all of it so far.
    await page.reload();
    await until('them again', async () => (await draft.allInnerTexts())[0] === 'Naïve 👋🏽 wör');
    await mkdir(gate);
    await until('the rest', async () => (await draft.allInnerTexts())[0] === 'Naïve 👋🏽 wörds');
    await mkdir(`${gate}2`);
    await page.getByText('Naïve 👋🏽 words, finished.').waitFor();
    assert.equal(await draft.count(), 0);
    await rm(folder, { recursive: true });
  });
});

describe('the client by itself', () => {
  /** The example as it would stand in somebody's project, run by Node. */
  async function example(...flags) {
    const folder = await mkdtemp(path.join(tmpdir(), 'rejoin-example-'));
    try {
      await mkdir(path.join(folder, 'node_modules/@rejoin'), { recursive: true });
      await symlink(SDK, path.join(folder, 'node_modules/@rejoin/client'));
      await symlink(path.join(SDK, 'examples/node.mjs'), path.join(folder, 'example.mjs'));
      const started = spawn(process.execPath, [...flags, '--preserve-symlinks-main', 'example.mjs'], {
        cwd: folder,
        env: { ...process.env, REJOIN_SERVER: wire.base, REJOIN_TOKEN: server.token },
      });
      let out = '';
      let words = '';
      started.stdout.on('data', (data) => (out += data));
      started.stderr.on('data', (data) => (words += data));
      const run = await until(`the run to be started\n${words}`, () => /started (\S+)/.exec(words)?.[1]);
      await server.ended({ id: run });
      const log = await server.events('smart-maintenance');
      await until(`all of it\n${words}`, () => out.trim().split('\n').length >= log.length);
      started.kill();
      const lines = out
        .trim()
        .split('\n')
        .map((line) => line.split(' ', 2));
      assert.deepEqual(
        lines,
        log.map(({ seq, kind }) => [String(seq), kind]),
      );
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  before(async () => {
    const built = spawn('npm', ['run', 'build', '--prefix', SDK], { stdio: 'ignore' });
    assert.equal(await new Promise((done) => built.once('exit', done)), 0, 'the client is built');
  });

  const hasSocket = typeof WebSocket !== 'undefined';

  test('the example for Node runs', async () => {
    await example();
  });

  test('the example for Node runs with a WebSocket', { skip: hasSocket && 'as above' }, async () => {
    await example('--experimental-websocket');
  });

  test('the example for browsers runs, on a page that stands before a server', async () => {
    const front = http.createServer(async (request, response) => {
      const file = {
        '/': ['examples/browser.html', 'text/html'],
        '/rejoin/index.js': ['dist/index.js', 'text/javascript'],
      }[request.url];
      if (file === undefined) {
        const { method, headers } = request;
        const behind = http.request({ port: server.port, path: request.url, method, headers }, (answer) => {
          response.writeHead(answer.statusCode, answer.headers);
          answer.pipe(response);
        });
        behind.on('error', () => response.destroy());
        request.pipe(behind);
        return;
      }
      response.setHeader('Content-Type', file[1]);
      response.end(await readFile(path.join(SDK, file[0])));
    });
    front.on('upgrade', (request, near) => {
      const far = net.connect(server.port, '127.0.0.1');
      const head = Object.entries(request.headers).map(([name, value]) => `${name}: ${value}\r\n`);
      far.write(`GET ${request.url} HTTP/1.1\r\n${head.join('')}\r\n`);
      near.pipe(far).pipe(near);
      near.on('error', () => far.destroy());
      far.on('error', () => near.destroy());
    });
    await new Promise((resolve) => front.listen(0, '127.0.0.1', resolve));
    const { page } = await stage.open();
    const base = `http://127.0.0.1:${front.address().port}`;
    await page.goto(base);
    const code = await server.code();
    await page.evaluate(
      (code) =>
        fetch('/api/v1/session', {
          method: 'POST',
          headers: { 'Content-Type': 'application/json' },
          body: JSON.stringify({ code }),
        }),
      code,
    );
    await page.reload();
    await server.finish('smart-maintenance');
    const log = await server.events('smart-maintenance');
    const wanted = log.map(({ seq, kind }) => `${seq} ${kind}`).join('\n');
    await until('everything to stand there', async () => (await page.innerText('body')).trim() === wanted);
    front.closeAllConnections();
    front.close();
  });
});
