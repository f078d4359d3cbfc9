// The cases of tests/conformance/client, played against this client in a world with a clock that moves when told.

import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { check, fill, fits } from '../../tests/conformance/fake/pattern.mjs';
import { Stream, play, positionOf } from '../../tests/conformance/fake/play.mjs';
import { Connection } from '../sdk/src/connection.ts';
import { Api } from '../sdk/src/http.ts';
import { TaskLog } from '../sdk/src/log.ts';

const KIT = fileURLToPath(new URL('../../tests/conformance/', import.meta.url));

/** What this client can do beside following tasks. */
const CAN = [
  'virtual_clock',
  'chance',
  'wake',
  'retry',
  'gives_up',
  'tasks',
  'states',
  'several',
  'stays',
  'pages',
  'deltas',
  'commands',
  'feed',
  'fallback',
];

/** Everything that was promised to happen without time passing has happened. */
const rest = async () => {
  for (let n = 0; n < 3; n += 1) await new Promise((resolve) => setImmediate(resolve));
};

class FakeSocket {
  readyState = 0;
  onopen = null;
  onmessage = null;
  onclose = null;
  onerror = null;
  heard = [];

  constructor(world) {
    this.world = world;
    this.spokeAt = world.time;
  }

  // The client's side.

  send(text) {
    if (this.readyState !== 1) throw new Error('not open');
    this.heard.push({ frame: JSON.parse(text) });
  }

  close() {
    if (this.readyState >= 2) return;
    this.readyState = 3;
    this.heard.push({ closed: true });
  }

  // The server's.

  async accept() {
    this.readyState = 1;
    this.onopen?.({});
    return this;
  }

  async refuse() {
    this.lose(1006, '');
  }

  async receive(ms) {
    await this.world.until(() => this.heard.length > 0, ms);
    return this.heard.shift() ?? null;
  }

  async send_(text) {
    this.spokeAt = this.world.time;
    this.onmessage?.({ data: text });
    await rest();
  }

  async lose(code, reason) {
    this.readyState = 3;
    this.onclose?.({ code, reason });
    await rest();
  }
}

/** A socket as the fake server holds it. */
const lineOf = (socket) => ({
  receive: (ms) => socket.receive(ms),
  send: (text) => socket.send_(text),
  close: (code, reason) => socket.lose(code, reason),
  cut: () => socket.lose(1006, ''),
  get spokeAt() {
    return socket.spokeAt;
  },
});

/** A stream of server-sent events as the fake server holds it. */
class StreamLine {
  heard = [];
  stream = new Stream();

  constructor(world, signal) {
    this.world = world;
    this.spokeAt = world.time;
    this.body = new ReadableStream({ start: (controller) => void (this.controller = controller) });
    signal?.addEventListener('abort', () => {
      if (this.ended) return;
      this.ended = true;
      this.heard.push({ closed: true });
      this.controller.error(new DOMException('aborted', 'AbortError'));
    });
  }

  async receive(ms) {
    await this.world.until(() => this.heard.length > 0, ms);
    return this.heard.shift() ?? null;
  }

  async send(text) {
    this.spokeAt = this.world.time;
    this.controller.enqueue(new TextEncoder().encode(this.stream.write(JSON.parse(text))));
    await rest();
  }

  async close() {
    if (!this.ended) this.controller.close();
    this.ended = true;
    await rest();
  }

  async cut() {
    this.ended = true;
    this.controller.error(new TypeError('network'));
    await rest();
  }
}

class World {
  slackMs = 0;
  time = 1_000_000;
  timers = [];
  order = 0;
  waiting = [];
  visible = true;
  online = true;
  words = [];
  list = new Map();
  outcomes = new Map();
  logs = new Map();

  environment = {
    now: () => this.time,
    setTimer: (action, ms) => {
      const timer = { at: this.time + ms, order: this.order++, action };
      this.timers.push(timer);
      return timer;
    },
    clearTimer: (timer) => {
      this.timers = this.timers.filter((other) => other !== timer);
    },
    random: () => this.chance,
    uuid: () => crypto.randomUUID(),
    sockets: true,
    openSocket: () => {
      const socket = new FakeSocket(this);
      if (this.server.gone) {
        queueMicrotask(() => socket.refuse());
        return socket;
      }
      const accept = async () => {
        await socket.accept();
        await rest();
        return lineOf(socket);
      };
      this.waiting.push({ via: 'live', ask: {}, accept, refuse: () => socket.refuse() });
      return socket;
    },
    fetch: (address, init = {}) => this.fetch(address, init),
    visible: () => this.visible,
    online: () => this.online,
    listen: (onWake, onNetwork) => {
      this.wake = onWake;
      this.network = onNetwork;
      return () => {};
    },
  };

  /** A call, or a stream that waits to be let in. */
  fetch(address, { method = 'GET', headers: said = {}, body, signal }) {
    const url = new URL(address, 'http://server');
    const path = url.pathname.replace(/^\/api\/v1/, '');
    const query = url.searchParams;
    const headers = Object.fromEntries(
      Object.entries(said).map(([name, value]) => [name.toLowerCase(), value]),
    );
    return new Promise((resolve, reject) => {
      const abort = () => reject(new DOMException('aborted', 'AbortError'));
      if (signal?.aborted) return abort();
      signal?.addEventListener('abort', abort);
      const gone = () => reject(new TypeError('failed to fetch'));
      if (!headers.accept?.includes('text/event-stream')) {
        const answer = this.server.answer(method, path, query, headers, body && JSON.parse(body));
        if (answer === null) return gone();
        const kind = { 'content-type': 'application/json' };
        return resolve(new Response(JSON.stringify(answer.body), { status: answer.status, headers: kind }));
      }
      if (this.server.down) return gone();
      this.waiting.push({
        via: 'feed',
        ask: { path, query: Object.fromEntries(query), headers, position: positionOf(query, headers) },
        accept: async () => {
          const line = new StreamLine(this, signal);
          resolve(new Response(line.body, { headers: { 'content-type': 'text/event-stream' } }));
          await rest();
          return line;
        },
        refuse: async (status) => {
          if (status === undefined) gone();
          else resolve(new Response('{}', { status }));
          await rest();
        },
      });
    });
  }

  async begin(client, server) {
    this.server = server;
    this.chance = client.chance;
    const connection = new Connection({
      url: 'ws://server/api/v1/live',
      tasks: client.tasks ?? false,
      transports: client.by?.map((way) => ({ live: 'websocket', feed: 'sse', pages: 'pages' })[way]),
      environment: this.environment,
    });
    this.connection = connection;
    connection.listen({
      tasks: (frame) => {
        if (frame.full) this.list.clear();
        for (const item of frame.items) this.list.set(item.id, item);
        for (const id of frame.removed ?? []) this.list.delete(id);
      },
      notice: ({ code, text, over }) => this.words.push({ what: 'notice', code, text, over: over ?? false }),
    });
    for (const watch of client.watch ?? []) this.watch(watch);
    connection.start();
    await rest();
  }

  watch({ task, gen, after }) {
    const events = [];
    const place = (item) => {
      const at = events.findIndex((other) => other.data.log === item.data.log && other.seq >= item.seq);
      if (at >= 0 && events[at].seq === item.seq) throw new Error(`event ${item.seq} was given out twice`);
      events.splice(at < 0 ? events.length : at, 0, item);
    };
    const tell = (what, more) => this.words.push({ task, what, ...more });
    const api = new Api('/api/v1', this.environment.fetch);
    const log = new TaskLog((query) => api.events(task, query), {
      cleared: () => tell('cleared', {}),
      appended: (items) => events.push(...items),
      inserted: (items) => items.forEach(place),
      stated: () => {},
      delta: () => {},
      reset: ({ why }) => tell('reset', { why }),
      caughtUp: (recovered) => tell('caught_up', { recovered }),
      ended: (why) => tell('ended', { why }),
      changed: () => {},
    });
    if (after > 0) Object.assign(log, { gen, first: after + 1, last: after });
    const from = after > 0 ? { gen, seq: after } : undefined;
    this.logs.set(task, { events, subscription: this.connection.watch(task, log, from) });
  }

  async end() {
    this.connection?.stop();
  }

  now() {
    return this.time;
  }

  settle() {
    return rest();
  }

  /** Nothing comes about by waiting but what time brings, and that is asked for. */
  async moment() {
    await rest();
  }

  /** Lets time pass until something is so, and no longer than it has to. */
  async until(good, ms) {
    const end = this.time + Math.max(0, ms);
    await rest();
    while (!good()) {
      const due = this.timers
        .filter((timer) => timer.at <= end)
        .sort((a, b) => a.at - b.at || a.order - b.order)[0];
      if (due === undefined) {
        this.time = end;
        return;
      }
      this.timers = this.timers.filter((timer) => timer !== due);
      this.time = Math.max(this.time, due.at);
      due.action();
      await rest();
    }
  }

  pass(ms) {
    return this.until(() => false, ms);
  }

  async arrival(ms) {
    await this.until(() => this.waiting.length > 0, ms);
    return this.waiting.shift() ?? null;
  }

  shown(task) {
    return this.logs.get(task).events;
  }

  state() {
    const { state, blocked } = this.connection.status;
    if (blocked === 'expired') return 'sign_in';
    return blocked === null || blocked === 'exhausted' ? state : blocked;
  }

  isState(wanted, state) {
    return wanted.includes(state);
  }

  taskState(task) {
    const { state } = this.logs.get(task).subscription;
    return state === 'live' || state === 'ended' ? state : 'catching_up';
  }

  tasks() {
    return [...this.list.keys()].sort();
  }

  told() {
    return this.words;
  }

  draft(task, key) {
    return new Map(this.logs.get(task).subscription.drafts.entries()).get(key) ?? null;
  }

  outcome(name) {
    return this.outcomes.get(name) ?? null;
  }

  async act(action) {
    switch (action.act) {
      case 'wake':
        this.wake(action.why);
        break;
      case 'network':
        this.online = action.online;
        this.network();
        break;
      case 'look_away':
        this.visible = false;
        break;
      case 'look_back':
        this.visible = true;
        this.wake('visible');
        break;
      case 'retry':
        this.connection.retry();
        break;
      case 'watch':
        this.watch(action);
        break;
      case 'unwatch':
        this.connection.unwatch(this.logs.get(action.task).subscription);
        break;
      case 'command': {
        const { as: name, command } = action;
        this.connection.command(command).then(
          (result) => this.outcomes.set(name, { done: result }),
          ({ code }) => this.outcomes.set(name, { error: code }),
        );
        break;
      }
      default:
        throw new Error(`there is no act ${action.act}`);
    }
    await rest();
  }
}

const files = (folder) =>
  readdirSync(path.join(KIT, folder), { recursive: true })
    .filter((name) => name.endsWith('.json'))
    .map((name) => path.join(folder, name))
    .sort();

for (const file of files('client')) {
  const casus = JSON.parse(readFileSync(path.join(KIT, file), 'utf8'));
  const cannot = (casus.needs ?? []).filter((need) => !CAN.includes(need));
  test.skipIf(cannot.length > 0)(`${file.replace(/\.json$/, '')}: ${casus.case}`, () =>
    play(casus, new World()),
  );
}

test('patterns mean here what they mean in the other languages', () => {
  const { examples, filled } = JSON.parse(readFileSync(path.join(KIT, 'patterns.json'), 'utf8'));
  for (const { pattern, value, memory = {}, fits: wanted, saved } of examples) {
    expect(fits(pattern, value, memory), JSON.stringify({ pattern, value })).toBe(wanted);
    if (saved === undefined) continue;
    check(pattern, value, memory);
    expect(memory).toEqual(saved);
  }
  for (const { from, memory = {}, to } of filled) expect(fill(from, memory)).toEqual(to);
});
