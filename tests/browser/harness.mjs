// A real server with fresh data, a real browser, and a network between them that can be cut.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, afterEach, before } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const execute = promisify(execFile);
const require = createRequire(new URL('../../web/package.json', import.meta.url));
const { chromium } = require('playwright-core');

const BINARY = path.resolve(
  process.env.REJOIN_BIN ?? fileURLToPath(new URL('../../target/debug/rejoin', import.meta.url)),
);
const BROWSER = process.env.CHROMIUM_BIN ?? '/usr/bin/chromium';

export const PHONE = { width: 390, height: 844 };
const NARROW = { width: 360, height: 740 };
export const DESKTOP = { width: 1440, height: 900 };

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `check` gives something, and says what it waited for if it never does. */
export async function until(what, check, ms = 20_000) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > end) throw new Error(`waited ${ms} ms in vain for: ${what}`);
    await sleep(50);
  }
}

async function freePort() {
  const server = net.createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Counts to `to`, slowly. */
export const countingTask = (to, pause = 0.25, title = 'Counting') =>
  counting(title, `for i in $(seq 1 ${to}); do echo line $i; sleep ${pause}; done`);

/** What a step runs that goes on until `Server.letEnd`, however long it takes until that is said. */
export const untilLetEnd = (work) => `until [ -e ../over-$REJOIN_RUN ]; do ${work}; done`;

/** Counts, slowly, until it is let end: whatever comes meanwhile comes in the middle of it. */
export const heldTask = (title = 'Counting') =>
  counting(title, `i=0; ${untilLetEnd('i=$((i + 1)); echo line $i; sleep 0.25')}`);

function counting(title, run) {
  return `title = "${title}"
description = "Counts aloud, so that there is something to miss."
agent = "steps"

[[steps]]
name = "count"
thought = "How far does it go?"
run = "${run}"
timeout = "10m"

[[steps]]
name = "last"
thought = "Was that all?"
run = "echo the end"
`;
}

/** Segments are event objects joined by commas, with their ends beside them; the task's number is the key's upper part. */
const READ_LOG = `
import hashlib, json, sqlite3, struct, sys
database = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True, timeout=10)
database.text_factory = bytes
database.execute('BEGIN')
number, gen, oldest, head = database.execute('SELECT no, gen, oldest, head FROM tasks WHERE id = ?', [sys.argv[2]]).fetchone()
events = []
for first, ends, items in database.execute(
    'SELECT first, ends, items FROM segments WHERE key >> 40 = ? ORDER BY key', [number]):
    begin = 0
    for end, in struct.iter_unpack('<I', ends):
        text = items[begin:end]
        seq = json.loads(text)['seq']
        assert not events or seq == events[-1][0] + 1, (events[-1], seq)
        events.append([seq, hashlib.sha256(text).hexdigest()])
        assert items[end:end + 1] in (b',', b''), items[end:end + 20]
        begin = end + 1
assert not events or events[-1][0] == head, (events[-1], head)
print(json.dumps({'gen': format(gen % 2**64, '016x'), 'head': head, 'events': events}))
`;

const sha256 = (text) => createHash('sha256').update(text).digest('hex');

/** The end of the JSON value that begins at `at`, without reading it: the text is what is to be compared. */
function endOfValue(text, at) {
  let depth = 0;
  for (; at < text.length; at += 1) {
    const sign = text[at];
    if (sign === '"') {
      for (at += 1; text[at] !== '"'; at += 1) if (text[at] === '\\') at += 1;
    } else if (sign === '{' || sign === '[') depth += 1;
    else if (sign === '}' || sign === ']') {
      if (depth === 0) return at;
      depth -= 1;
    } else if (sign === ',' && depth === 0) return at;
  }
  return at;
}

/** The members of a flat JSON object, or the items of an array, as the text they are. */
function partsOf(text) {
  const parts = [];
  for (let at = 1; at < text.length - 1;) {
    const end = endOfValue(text, at);
    parts.push(text.slice(at, end).trim());
    at = end + 1;
  }
  return parts;
}

function member(text, name) {
  const part = partsOf(text).find((one) => one.startsWith(`"${name}":`));
  return part?.slice(name.length + 3).trim();
}

/** The numbers of the events in a frame, each with the hash of its exact text. */
export function hashesIn(type, text) {
  const texts = type === 'event' ? [member(text, 'event')] : partsOf(member(text, 'items'));
  return texts.map((one) => [JSON.parse(one).seq, sha256(one)]);
}

/**
 * Writes down what the sockets of a context receive and send. `events` are the exact texts; `faults` is what no
 * connection may do: go back, leave out, or send another text under a number that is taken.
 */
export class Ear {
  constructor(context, task) {
    this.task = task;
    this.sockets = [];
    this.hashes = new Map();
    this.faults = [];
    const listen = (page) => page.on('websocket', (socket) => this.hear(socket));
    context.pages().forEach(listen);
    context.on('page', listen);
  }

  hear(socket) {
    const heard = { subscribed: [], next: new Map(), subs: new Map() };
    this.sockets.push(heard);
    socket.on('framereceived', ({ payload }) => {
      const frame = JSON.parse(payload);
      if (frame.type === 'subscribed') {
        heard.subs.set(frame.sub, frame.task);
        if (frame.task !== this.task) return;
        heard.subscribed.push(frame);
        if (frame.outcome === 'resumed') heard.next.set(frame.sub, frame.from);
      } else if (frame.type === 'snapshot') {
        heard.next.set(frame.sub, frame.seq + 1);
      } else if (frame.type === 'event' || frame.type === 'events') {
        if (heard.subs.get(frame.sub) !== this.task) return;
        const texts = frame.type === 'event' ? [member(payload, 'event')] : partsOf(member(payload, 'items'));
        for (const text of texts) this.note(heard, frame.sub, text);
      }
    });
  }

  note(heard, sub, text) {
    const { seq, task } = JSON.parse(text);
    if (task !== this.task) this.faults.push(`${seq} is of ${task}`);
    if (heard.next.get(sub) !== seq) this.faults.push(`${seq} where ${heard.next.get(sub)} was due`);
    heard.next.set(sub, seq + 1);
    const hash = sha256(text);
    const before = this.hashes.get(seq);
    if (before !== undefined && before !== hash) this.faults.push(`${seq} came with another text`);
    this.hashes.set(seq, hash);
  }

  get last() {
    return Math.max(0, ...this.hashes.keys());
  }
}

export class Server {
  /** Task files by id; further lines for config.toml. */
  static async start({ tasks = {}, config = '', data = 'data' } = {}) {
    const server = new Server();
    server.data = data;
    server.folder = await mkdtemp(path.join(tmpdir(), 'rejoin-browser-'));
    server.port = await freePort();
    const tasksFolder = path.join(server.folder, 'tasks');
    await mkdir(tasksFolder, { mode: 0o700 });
    for (const [id, text] of Object.entries(tasks)) {
      await writeFile(path.join(tasksFolder, `${id}.toml`), text, { mode: 0o600 });
    }
    await writeFile(
      path.join(server.folder, 'config.toml'),
      `listen = "127.0.0.1:${server.port}"\ndata_dir = "${data}"\ntasks_dir = "tasks"\n${config}`,
      { mode: 0o600 },
    );
    await server.run();
    return server;
  }

  get base() {
    return `http://127.0.0.1:${this.port}`;
  }

  async run() {
    this.log = '';
    this.process = spawn(BINARY, ['serve', '--config', path.join(this.folder, 'config.toml')], {
      cwd: this.folder,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.exited = new Promise((resolve) => this.process.once('exit', resolve));
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream.on('data', (data) => (this.log += data));
    }
    await until(`the server to be ready\n${this.log}`, async () => {
      if (this.process.exitCode !== null) throw new Error(`the server ended:\n${this.log}`);
      return fetch(`${this.base}/readyz`).then(
        (answer) => answer.ok,
        () => false,
      );
    });
    this.token = (await readFile(path.resolve(this.folder, this.data, 'token'), 'utf8')).trim();
  }

  /** Ends the process and keeps its data. */
  async halt(signal = 'SIGTERM') {
    if (this.process.exitCode === null && this.process.signalCode === null) this.process.kill(signal);
    const patience = setTimeout(() => this.process.kill('SIGKILL'), 20_000);
    await this.exited;
    clearTimeout(patience);
  }

  async stop() {
    await this.halt();
    await rm(this.folder, { recursive: true, force: true });
  }

  async call(method, where, body) {
    const answer = await fetch(`${this.base}/api/v1${where}`, {
      method,
      headers: { Authorization: `Bearer ${this.token}`, 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${where}: ${answer.status} ${text}`);
    return text === '' ? null : JSON.parse(text);
  }

  async code() {
    return (await this.call('POST', '/session/codes', {})).code;
  }

  async startRun(task, params = {}) {
    return (await this.call('POST', `/tasks/${task}/runs`, { params })).run;
  }

  runOf = (id) => this.call('GET', `/runs/${id}`);

  /** A run as it stands once it is over. */
  ended({ id }) {
    const end = async () => {
      const run = await this.runOf(id);
      return run.ended_at ? run : null;
    };
    return until('the run to end', end, 120_000);
  }

  /** The same for one that goes on until it is let end. */
  async letEnd(run) {
    await writeFile(path.join(this.folder, `over-${run.id}`), '');
    return this.ended(run);
  }

  async finish(task, params) {
    return this.ended(await this.startRun(task, params));
  }

  /** A command of the same program, as a person types it in a terminal; gives what it prints. */
  async type(...args) {
    const { stdout } = await execute(BINARY, [...args, '--config', path.join(this.folder, 'config.toml')], {
      cwd: this.folder,
    });
    return stdout;
  }

  /** What stands in the database file, read by a program that shares nothing with the server. */
  async written(task) {
    const file = path.resolve(this.folder, this.data, 'rejoin.db');
    const { stdout } = await execute('python3', ['-c', READ_LOG, file, task], {
      maxBuffer: 256 * 1024 * 1024,
    });
    const { gen, head, events } = JSON.parse(stdout);
    return { gen, head, hashes: new Map(events) };
  }

  /**
   * The disk is full: the server can write to no file behind its first byte. Were it up to the length that the log of the
   * database has now, there would be room as soon as housekeeping has emptied that.
   */
  async fillDisk() {
    await execute('prlimit', ['--pid', String(this.process.pid), '--fsize=1:unlimited']);
  }

  async emptyDisk() {
    await execute('prlimit', ['--pid', String(this.process.pid), '--fsize=unlimited:unlimited']);
  }

  /** The whole log of a task. */
  async events(task) {
    const all = [];
    let query = 'after=0';
    for (;;) {
      const page = await this.call('GET', `/tasks/${task}/events?limit=500&${query}`);
      all.push(...page.items);
      if (!page.more) return all;
      query = `gen=${page.gen}&after=${page.next}`;
    }
  }
}

/** A wire that can be cut: politely (fin), rudely (rst), or so that nobody notices (blackhole). */
export class Wire {
  static async to(port) {
    const wire = new Wire();
    wire.pairs = new Set();
    wire.mode = 'pass';
    /** Requests that do not get through. */
    wire.blocked = null;
    wire.listener = net.createServer((near) => wire.take(near, port));
    await new Promise((resolve) => wire.listener.listen(0, '127.0.0.1', resolve));
    wire.port = wire.listener.address().port;
    return wire;
  }

  get base() {
    return `http://127.0.0.1:${this.port}`;
  }

  take(near, port) {
    near.on('error', () => {});
    if (this.mode === 'refuse') {
      near.resetAndDestroy();
      return;
    }
    const far = net.connect(port, '127.0.0.1');
    far.on('error', () => near.destroy());
    const pair = { near, far };
    this.pairs.add(pair);
    near.on('data', (data) => {
      // A proxy that will not have what it does not know.
      if (this.blocked?.test(data.toString('latin1'))) near.resetAndDestroy();
      else if (this.mode !== 'blackhole') far.write(data);
    });
    far.on('data', (data) => this.mode !== 'blackhole' && near.write(data));
    const close = () => {
      if (this.mode === 'blackhole') return;
      near.destroy();
      far.destroy();
      this.pairs.delete(pair);
    };
    near.on('close', close);
    far.on('close', close);
  }

  /** Cuts what there is; `then` says what happens to new connections. */
  cut(how, then = 'refuse') {
    this.mode = how === 'blackhole' ? 'blackhole' : then;
    if (how === 'blackhole') return;
    for (const { near, far } of this.pairs) {
      if (how === 'rst') near.resetAndDestroy();
      else near.end();
      far.destroy();
    }
    this.pairs.clear();
  }

  mend() {
    for (const { near, far } of this.pairs) {
      if (this.mode !== 'blackhole') break;
      near.destroy();
      far.destroy();
    }
    if (this.mode === 'blackhole') this.pairs.clear();
    this.mode = 'pass';
  }

  async close() {
    for (const { near, far } of this.pairs) {
      near.destroy();
      far.destroy();
    }
    await new Promise((resolve) => this.listener.close(resolve));
  }
}

/** Takes what channels send: `heard` has it with its path, and `answers` what a path is answered, if that is not 200. */
export class Receiver {
  heard = [];
  answers = {};

  static async start() {
    const receiver = new Receiver();
    // Inherited by the servers that are started from here on.
    process.env.REJOIN_TEST_SECRET = 'a secret of some length';
    receiver.listener = http.createServer((request, response) => {
      let text = '';
      request.on('data', (data) => (text += data));
      request.on('end', () => {
        receiver.heard.push({ path: request.url, text });
        response.writeHead(receiver.answers[request.url] ?? 200).end();
      });
    });
    await new Promise((resolve) => receiver.listener.listen(0, '127.0.0.1', resolve));
    return receiver;
  }

  /** The lines of config.toml for a channel that ends here. */
  channel(name, kind, more = '') {
    const url = `http://127.0.0.1:${this.listener.address().port}`;
    return `[notify.channels.${name}]\nkind = "${kind}"\nurl = "${url}/${name}"\nallow_hosts = ["127.0.0.1"]\n${more}`;
  }

  webhook(name, more = '') {
    return this.channel(name, 'webhook', `secret = { env = "REJOIN_TEST_SECRET" }\n${more}`);
  }

  close() {
    this.listener.closeAllConnections();
    return new Promise((resolve) => this.listener.close(resolve));
  }
}

/** A WebSocket, and a stream of events, as they ask for it. */
export const UPGRADE = /^upgrade: websocket/im;
export const STREAM = /^accept: text\/event-stream/im;

export async function openBrowser(...more) {
  return chromium.launch({
    executablePath: BROWSER,
    args: [
      ...more,
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--no-first-run',
    ],
  });
}

/** A context of its own with a page that writes down what it complains of. */
export async function openPage(browser, options = {}) {
  const context = await browser.newContext({ viewport: DESKTOP, ...options });
  const page = await watched(context);
  return { context, page };
}

export async function watched(context) {
  const page = await context.newPage();
  page.complaints = [];
  page.on('pageerror', (error) => page.complaints.push(`error: ${error.message}`));
  page.on('console', (message) => {
    // A refused connection is what some tests are about; the browser writes it down by itself.
    const text = message.text();
    const network = /Failed to load resource|WebSocket connection to|ERR_/.test(text);
    if (message.type() === 'error' && !network) page.complaints.push(`console: ${text}`);
  });
  await page.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) => {
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`);
    });
  });
  return page;
}

/**
 * What the tests of a file stand on: a browser, servers, and wires to them. What a test opens is closed when it is over,
 * last first, and no page may have complained by then.
 */
export class Stage {
  #ofFile = [];
  #ofTest = [];
  #wires = [];

  constructor(...more) {
    before(async () => {
      this.browser = await openBrowser(...more);
      this.#ofFile.push(() => this.browser.close());
    });
    afterEach(async () => {
      const complaints = [];
      for (const end of this.#ofTest.splice(0).reverse()) complaints.push(...((await end()) ?? []));
      for (const wire of this.#wires) {
        wire.mend();
        wire.blocked = null;
      }
      assert.deepEqual(complaints, [], 'the page complained');
    });
    after(async () => {
      for (const end of this.#ofFile.splice(0).reverse()) await end();
    });
  }

  /** A server and a wire to it, for this test alone. */
  serve = (options) => this.#serve(options, this.#ofTest);

  /** The same for all tests of the file, each of which finds the wire whole. */
  async serveAll(options) {
    const served = await this.#serve(options, this.#ofFile);
    this.#wires.push(served.wire);
    return served;
  }

  async #serve(options, closing) {
    const server = await Server.start(options);
    closing.push(() => server.stop());
    const wire = await Wire.to(server.port);
    closing.push(() => wire.close());
    return { server, wire };
  }

  /** A context of its own with a page. */
  async open(options) {
    const opened = await openPage(this.browser, options);
    this.#ofTest.push(async () => {
      await opened.context.close();
      return opened.page.complaints;
    });
    return opened;
  }
}

export const state = (page, name, ms = 20_000) =>
  page.waitForSelector(`[data-connection="${name}"]`, { timeout: ms, state: 'attached' });

/** Mends the wire and has the page come back over it, at once where it still offers to. */
export async function back(page, wire) {
  wire.mend();
  await page
    .getByRole('button', { name: 'Retry now' })
    .click({ timeout: 2_000 })
    .catch(() => {});
  // The try that Retry was too late for may have failed, and then the next is half a minute away.
  await state(page, 'connected', 40_000);
}

export async function signIn(page, server, base = server.base, where = '/') {
  await page.goto(`${base}/#code=${await server.code()}`);
  await state(page, 'connected');
  if (where !== '/') {
    await page.goto(`${base}${where}`);
    await state(page, 'connected');
  }
}

export const settled = (page) =>
  page.waitForSelector('[data-settled="true"]', { timeout: 20_000, state: 'attached' });

export const applied = (page) => page.locator('.timeline').getAttribute('data-applied').then(Number);

/** Every number that the timeline shows, scrolled through from its top, and those that stand there twice. */
export function shownSeqs(page) {
  return page.evaluate(async () => {
    const seen = new Set();
    const twice = new Set();
    const frame = () =>
      new Promise((resolve, reject) => {
        const patience = setTimeout(() => reject(new Error('the browser draws nothing')), 20_000);
        requestAnimationFrame(() => {
          clearTimeout(patience);
          resolve();
        });
      });
    const rows = () =>
      [...document.querySelectorAll('.timeline [data-seq]')].map((one) => Number(one.dataset.seq));
    // What was scrolled to is drawn in one frame and measured in the next, whenever those come, and that may move it again.
    const settled = async () => {
      let before = '';
      for (let same = 0; same < 2;) {
        await frame();
        await frame();
        const now = `${window.scrollY} of ${document.documentElement.scrollHeight}: ${rows()}`;
        same = now === before ? same + 1 : 0;
        before = now;
      }
    };
    window.scrollTo(0, 0);
    for (;;) {
      await settled();
      const here = rows();
      for (const seq of here) {
        if (here.filter((other) => other === seq).length > 1) twice.add(seq);
        seen.add(seq);
      }
      const page = document.documentElement;
      if (window.scrollY + window.innerHeight >= page.scrollHeight - 2) break;
      window.scrollBy(0, window.innerHeight * 0.6);
    }
    return { seqs: [...seen].sort((a, b) => a - b), twice: [...twice] };
  });
}

/** Colours, names, roles and width, in the dark and in the light, as the page stands at this moment. */
export async function isFitToBeSeen(page) {
  // Run, not loaded: a script tag would be refused by the policy, as it should.
  await page.evaluate(await readFile(require.resolve('axe-core/axe.min.js'), 'utf8'));
  const faults = [];
  for (const colorScheme of ['dark', 'light']) {
    await page.emulateMedia({ colorScheme });
    const { violations } = await page.evaluate(() => window.axe.run());
    for (const { id, impact, nodes } of violations) {
      if (impact !== 'serious' && impact !== 'critical') continue;
      faults.push(`${colorScheme}: ${id}: ${nodes.map((node) => node.target.join(' ')).join(', ')}`);
    }
  }
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  if (width > page.viewportSize().width) faults.push(`the page is ${width} px wide`);
  assert.deepEqual(faults, []);
}

/** Everything that can be pressed or filled in is large enough for a finger, but links within a sentence. */
export async function isFitForFingers(page) {
  const small = await page.evaluate(() =>
    [...document.querySelectorAll('main :is(button, select, input, textarea, summary, a, [role=listbox])')]
      .filter((one) => one.checkVisibility() && getComputedStyle(one).display !== 'inline')
      .map((one) => [one, (one.closest('label') ?? one).getBoundingClientRect()])
      .filter(([, box]) => box.height < 43.5 || box.width < 43.5)
      .map(([one, box]) => `${one.outerHTML.slice(0, 120)} is ${box.width} x ${box.height}`),
  );
  assert.deepEqual(small, []);
}

/** The same at every width, in the hand and on a desk. */
export async function isFitEverywhere(page) {
  for (const viewport of [NARROW, PHONE, DESKTOP]) {
    await page.setViewportSize(viewport);
    await isFitToBeSeen(page);
    await isFitForFingers(page);
  }
}
