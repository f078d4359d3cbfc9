// The world of a client that is a program: a server that listens, and the program's output, one event as JSON a line.

import { spawn } from 'node:child_process';
import http from 'node:http';
import { createRequire } from 'node:module';
import readline from 'node:readline';
import { Stream, positionOf } from './play.mjs';

const require = createRequire(new URL('../../../web/package.json', import.meta.url));
const { WebSocketServer } = require('ws');

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Of a clock that nobody sets. */
const now = () => Math.floor(performance.now());

/** Things that come one after the other and are waited for. */
class Queue {
  constructor() {
    this.items = [];
    this.waiting = [];
  }

  put(item) {
    const waiting = this.waiting.shift();
    if (waiting === undefined) this.items.push(item);
    else waiting(item);
  }

  /** The next one, or null if none comes in time. */
  take(ms) {
    if (this.items.length > 0) return Promise.resolve(this.items.shift());
    if (ms <= 0) return Promise.resolve(null);
    return new Promise((resolve) => {
      const give = (item) => {
        clearTimeout(timer);
        resolve(item);
      };
      const timer = setTimeout(() => {
        this.waiting = this.waiting.filter((other) => other !== give);
        resolve(null);
      }, ms);
      this.waiting.push(give);
    });
  }
}

/** The server's side of a WebSocket. */
class Line {
  constructor(socket) {
    this.socket = socket;
    this.heard = new Queue();
    this.spokeAt = now();
    socket.on('message', (data) => this.heard.put({ frame: JSON.parse(data.toString()) }));
    socket.on('close', () => this.heard.put({ closed: true }));
    socket.on('error', () => {});
  }

  receive(ms) {
    return this.heard.take(ms);
  }

  send(text) {
    this.spokeAt = now();
    return new Promise((resolve) => this.socket.send(text, () => resolve()));
  }

  async close(code, reason) {
    this.socket.close(code, reason);
  }

  async cut() {
    this.socket.terminate();
  }
}

/** A request for server-sent events that waits to be let in. */
function streamOf(path, query, request, response) {
  const { headers } = request;
  return {
    via: 'feed',
    ask: { path, query: Object.fromEntries(query), headers, position: positionOf(query, headers) },
    accept: async () => {
      response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
      response.flushHeaders();
      const heard = new Queue();
      request.on('close', () => heard.put({ closed: true }));
      const stream = new Stream();
      const line = {
        spokeAt: now(),
        receive: (ms) => heard.take(ms),
        send: async (text) => {
          line.spokeAt = now();
          response.write(stream.write(JSON.parse(text)));
        },
        close: async () => response.end(),
        cut: async () => response.destroy(),
      };
      return line;
    },
    refuse: async (status) => {
      if (status === undefined) response.destroy();
      else response.writeHead(status).end();
    },
  };
}

/**
 * `command` is the program with its arguments; `{server}`, `{task}`, `{gen}` and `{after}` in them are filled in. It
 * prints every event it is given, and ends with an error where a person has to do something first.
 */
export class Listening {
  /** A loaded machine takes its time; what has to take long enough is not affected. */
  slackMs = 10_000;

  constructor(command, environment = {}) {
    this.command = command;
    this.environment = environment;
    this.arrivals = new Queue();
    this.events = [];
    this.words = '';
    this.ended = null;
  }

  now() {
    return now();
  }

  async begin(client, logs) {
    const server = http.createServer((request, response) => {
      const url = new URL(request.url, 'http://server');
      const path = url.pathname.replace(/^\/api\/v1/, '');
      if (request.headers.accept?.includes('text/event-stream')) {
        this.arrivals.put(streamOf(path, url.searchParams, request, response));
        return;
      }
      const said = [];
      request.on('data', (data) => said.push(data));
      request.on('end', () => {
        const body = said.length > 0 ? JSON.parse(Buffer.concat(said).toString()) : undefined;
        const answer = logs.answer(request.method, path, url.searchParams, request.headers, body);
        if (answer === null) return void response.destroy();
        const kind = answer.status < 300 ? 'application/json' : 'application/problem+json';
        response.writeHead(answer.status, { 'content-type': kind }).end(JSON.stringify(answer.body));
      });
    });
    const sockets = new WebSocketServer({ noServer: true });
    server.on('upgrade', (request, socket, head) => {
      socket.on('error', () => {});
      if (logs.gone) return void socket.destroy();
      this.arrivals.put({
        via: 'live',
        ask: { headers: request.headers },
        accept: () =>
          new Promise((resolve) =>
            sockets.handleUpgrade(request, socket, head, (open) => resolve(new Line(open))),
          ),
        refuse: async (status) => {
          // Without a status the connection breaks.
          if (status === undefined) socket.destroy();
          else socket.end(`HTTP/1.1 ${status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
        },
      });
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    this.server = server;
    this.sockets = sockets;
    const { task = 'job', gen = '', after = 0 } = client.watch?.[0] ?? {};
    const known = { server: `http://127.0.0.1:${server.address().port}`, task, gen, after };
    const [program, ...args] = this.command.map((part) =>
      part.replace(/\{(\w+)\}/g, (_, name) => known[name]),
    );
    this.program = spawn(program, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...this.environment },
    });
    this.program.on('error', (error) => (this.ended = { error }));
    this.program.on('exit', (code) => (this.ended = { code }));
    this.program.stderr.on('data', (data) => (this.words += data));
    readline.createInterface({ input: this.program.stdout }).on('line', (line) => {
      const event = JSON.parse(line);
      if (typeof event.seq === 'number') this.events.push(event);
    });
  }

  async end() {
    this.program?.kill('SIGKILL');
    for (const socket of this.sockets?.clients ?? []) socket.terminate();
    this.server?.closeAllConnections();
    await new Promise((resolve) => (this.server ? this.server.close(resolve) : resolve()));
  }

  arrival(ms) {
    return this.arrivals.take(ms);
  }

  pass(ms) {
    return sleep(ms);
  }

  /** What it printed is read by and by. */
  settle() {
    return sleep(5);
  }

  moment(ms) {
    return sleep(ms);
  }

  shown(task) {
    return this.events.filter((event) => event.task === task);
  }

  /** A program says by its end that a person is needed, by code 5 that it is about the credential; else it runs. */
  state() {
    if (this.ended === null) return 'runs';
    if (this.ended.error) throw this.ended.error;
    return `ended with ${this.ended.code}`;
  }

  isState(wanted, state) {
    const ended = state !== 'runs' && state !== 'ended with 0';
    const is = { sign_in: state === 'ended with 5', reload: ended, refused: ended };
    return wanted.some((name) => is[name] ?? state === 'runs');
  }

  taskState() {
    return undefined;
  }

  told() {
    return undefined;
  }

  async act(action) {
    throw new Error(`a program does not ${action.act}`);
  }
}
