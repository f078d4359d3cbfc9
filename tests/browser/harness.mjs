// A real server with fresh data, a real browser, and a network between them that can be cut.

import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const require = createRequire(new URL('../../web/package.json', import.meta.url));
const { chromium } = require('playwright-core');

const BINARY = process.env.REJOIN_BIN ?? fileURLToPath(new URL('../../target/debug/rejoin', import.meta.url));
const BROWSER = process.env.CHROMIUM_BIN ?? '/usr/bin/chromium';

export const PHONE = { width: 390, height: 844 };
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

/** Counts to `to`, slowly: enough to be cut in the middle of. */
export function countingTask(to, pause = 0.25, title = 'Counting') {
  return `title = "${title}"
description = "Counts aloud, so that there is something to miss."
agent = "steps"

[[steps]]
name = "count"
thought = "How far does it go?"
run = "for i in $(seq 1 ${to}); do echo line $i; sleep ${pause}; done"
timeout = "10m"

[[steps]]
name = "last"
thought = "Was that all?"
run = "echo the end"
`;
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
    await Promise.race([this.exited, sleep(20_000).then(() => this.process.kill('SIGKILL'))]);
    await this.exited;
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
    near.on('data', (data) => this.mode !== 'blackhole' && far.write(data));
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

export async function openBrowser() {
  return chromium.launch({
    executablePath: BROWSER,
    args: [
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

export const state = (page, name, ms = 20_000) =>
  page.waitForSelector(`[data-connection="${name}"]`, { timeout: ms, state: 'attached' });

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
    const settle = () => new Promise((resolve) => setTimeout(resolve, 120));
    window.scrollTo(0, 0);
    for (;;) {
      await settle();
      const here = [...document.querySelectorAll('.timeline [data-seq]')].map((one) =>
        Number(one.dataset.seq),
      );
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

/** The text of axe-core, to be run in the page: a script tag would be refused by the policy, as it should. */
export const axeSource = () => readFile(require.resolve('axe-core/axe.min.js'), 'utf8');
