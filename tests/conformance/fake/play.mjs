// Plays a case for clients: it is the server's side of every connection, and looks at what the client does and shows.
// It knows neither a network nor a clock; a world has them (README.md, "A client in another language").

import { Mismatch, check, fill, fits } from './pattern.mjs';

/** How long the client may take where nothing says how long: it subscribes again at most once a second. */
const SOON_MS = 3_000;

/** A task is subscribed again at most once in so long. */
const SUBSCRIBES_EVERY_MS = 1_000;

/** What a log holds where no case says so: each event is made from its number, so that everybody has the same. */
export function eventOf(task, gen, seq, more = {}) {
  return {
    task,
    run: '0192f0c1-7c1e-7a54-9e0b-3f6f3f0d2c11',
    seq,
    at: '2026-11-20T20:41:07.123456Z',
    kind: 'thought',
    // The log's name is in it: who shows events of several logs can be asked for those of one.
    data: { text: `thought ${seq}`, log: gen },
    ...more,
  };
}

const range = (first, last) => Array.from({ length: Math.max(0, last - first + 1) }, (_, n) => first + n);

/** The logs that the fake server has, and what it answers over HTTP. */
export class Logs {
  constructor(watches) {
    this.logs = new Map();
    /** What was asked for, oldest first. */
    this.asked = [];
    /** Nothing answers over HTTP, as where there is no server. */
    this.down = false;
    /** ... and sockets are refused before they are looked at. */
    this.gone = false;
    /** What else is answered, by call: `POST /tasks/job/runs`. */
    this.calls = new Map();
    for (const { task, gen, after } of watches) {
      this.logs.set(task, { gen: gen ?? '9d2e77c1a0b4f3e8', oldest: 1, head: after ?? 0 });
    }
  }

  set(task, log) {
    this.logs.set(task, log);
  }

  task(id) {
    const log = this.logs.get(id);
    if (log === undefined) return null;
    return { id, title: id, state: 'idle', enabled: true, agent: 'external', params: {}, ...log };
  }

  /** The answer to a call of a path below /api/v1: `{status, body}`, or null where there is none. */
  answer(method, path, query, headers = {}, body = undefined) {
    if (this.down) return null;
    this.asked.push({ method, path, query: Object.fromEntries(query), headers, body });
    const call = this.calls.get(`${method} ${path}`);
    if (call !== undefined) return call;
    if (method !== 'GET') return problem(404, 'not_found', {});
    if (path === '/status') {
      return ok({
        version: '0',
        uptime_s: 1,
        connections: 1,
        running: 0,
        queued: 0,
        next: null,
        notices: [],
      });
    }
    if (path === '/tasks') return ok({ items: [...this.logs.keys()].map((id) => this.task(id)), next: null });
    const [, id, rest] = /^\/tasks\/([^/]+)(\/.*)?$/.exec(path) ?? [];
    const log = id === undefined ? undefined : this.logs.get(decodeURIComponent(id));
    if (log === undefined) return problem(404, 'not_found', {});
    if (rest === undefined) return ok(this.task(id));
    if (rest === '/runs') return ok({ items: [], next: null });
    return rest === '/events' ? page(id, log, query) : problem(404, 'not_found', {});
  }
}

/** Where a stream of server-sent events is to go on: `Last-Event-ID` wins over the query. */
export function positionOf(query, headers) {
  const [gen, seq] = (headers['last-event-id'] ?? '').split('.');
  if (seq !== undefined) return { gen, seq: Number(seq) };
  return { gen: query.get('gen'), seq: Number(query.get('after') ?? 0) };
}

/** Frames as a stream of server-sent events has them. */
export class Stream {
  gen = '';

  /** A frame as an event's text. */
  write(frame) {
    const { sub: _, heads, ...data } = frame;
    if (frame.gen !== undefined) this.gen = frame.gen;
    // A stream is of one task, so there is one head.
    if (heads !== undefined) Object.assign(data, { heads: Object.values(heads)[0] });
    const seq = { event: frame.event?.seq, events: frame.last, snapshot: frame.seq, cursor: frame.seq }[
      frame.type
    ];
    const id = seq === undefined ? '' : `id: ${this.gen}.${seq}\n`;
    const retry = frame.type === 'close' ? `retry: ${frame.retry_ms}\n` : '';
    const text = frame.type === 'cursor' ? '' : JSON.stringify(data);
    return `event: ${frame.type}\n${id}${retry}data: ${text}\n\n`;
  }
}

const ok = (body) => ({ status: 200, body });

const problem = (status, code, more) => ({
  status,
  body: { type: 'about:blank', title: code, status, code, detail: code, ...more },
});

function page(task, log, query) {
  const { gen, oldest, head } = log;
  const wrong = (status, code) => problem(status, code, { oldest, head, gen });
  const limit = Math.min(Number(query.get('limit') ?? 500), 500);
  const back = query.get('before');
  const given = Number(back ?? query.get('after') ?? 0);
  const seqs =
    back !== null
      ? range(Math.max(oldest, Math.min(given, head + 1) - limit), Math.min(given, head + 1) - 1)
      : range(Math.max(given + 1, oldest), Math.min(Math.max(given + 1, oldest) + limit - 1, head));
  if (given > 0 && query.get('gen') !== gen) return wrong(409, 'generation');
  if (back === null && given > head) return wrong(409, 'future');
  if (given > 0 && back === null && given < oldest - 1) return wrong(410, 'retention');
  const first = seqs[0];
  const last = seqs[seqs.length - 1];
  const next = back !== null ? (first ?? given) : (last ?? given);
  const more = back !== null ? first !== undefined && first > oldest : last !== undefined && last < head;
  return ok({ task, gen, oldest, head, items: seqs.map((seq) => eventOf(task, gen, seq)), next, more });
}

/** Plays one case; throws with the step where something did not hold. */
export async function play(casus, world) {
  const player = new Player(casus, world);
  let n = 0;
  try {
    await world.begin({ ...casus.client, chance: casus.chance ?? 0.5 }, player.logs);
    for (const step of casus.steps) {
      n += 1;
      await player.step(step);
    }
  } catch (error) {
    error.message = `step ${n} (${JSON.stringify(casus.steps[n - 1] ?? {}).slice(0, 200)}): ${error.message}`;
    throw error;
  } finally {
    await world.end();
  }
}

class Player {
  constructor(casus, world) {
    this.world = world;
    this.logs = new Logs(casus.client.watch ?? []);
    this.memory = {};
    this.lines = new Map();
    /** The soonest that the client can have said its last frame, by connection. */
    this.soonest = new Map();
    /** When the last connection was lost or refused, or the client began. */
    this.lostAt = world.now();
  }

  line(name) {
    const line = this.lines.get(name);
    if (line === undefined) throw new Error(`there is no connection ${name}`);
    return line;
  }

  async step(step) {
    const { world, memory } = this;
    switch (step.do) {
      case 'log':
        this.logs.set(step.task, { gen: step.gen, oldest: step.oldest, head: step.head });
        return;
      case 'accept':
        return this.accept(step);
      case 'refuse':
        return this.refuse(step);
      case 'greet':
        await this.accept(step);
        check(
          { type: 'hello', protocol: 1, ...step.hello },
          await this.frame(step.as, 'hello'),
          memory,
          'hello',
        );
        return this.send(step.as, {
          type: 'welcome',
          protocol: 1,
          connection: 'c-1',
          server: { version: '0.1.0', boot: 'b1' },
          heartbeat_ms: 20000,
          limits: {},
          last_close: null,
          ...step.welcome,
        });
      case 'receive':
        return this.receive(step);
      case 'send':
        return this.send(step.to, fill(step.frame, memory));
      case 'text':
        return this.line(step.to).send(step.text);
      case 'resumed':
        return this.send(step.to, {
          type: 'subscribed',
          sub: fill(step.sub, memory),
          task: step.task ?? 'job',
          gen: fill(step.gen, memory),
          outcome: 'resumed',
          from: step.from,
          head: step.head,
          missed: step.head - step.from + 1,
          runs: [],
        });
      case 'reset':
        return this.reset(step);
      case 'events':
        return this.events(step);
      case 'beat': {
        const sub =
          step.sub === undefined ? {} : { [fill(step.sub, memory)]: { sent: step.sent, head: step.head } };
        return this.send(step.to, {
          type: 'heartbeat',
          at: step.at ?? '2026-11-20T20:41:27.000000Z',
          heads: sub,
        });
      }
      case 'http':
        if (step.call === undefined)
          Object.assign(this.logs, { down: step.is !== 'up', gone: step.is === 'gone' });
        else this.logs.calls.set(step.call, { status: step.status, body: fill(step.body, memory) });
        return;
      case 'answers':
        return this.answers(step);
      case 'wears_out':
        return this.wearsOut(step);
      case 'keep':
        memory[step.save] = fill(step.value, memory);
        return;
      case 'close':
        // Before it is done: what the client makes of it may begin at once.
        this.lostAt = world.now();
        return this.line(step.as).close(
          step.code,
          step.reason === undefined ? '' : JSON.stringify(step.reason),
        );
      case 'cut':
        this.lostAt = world.now();
        return this.line(step.as).cut();
      case 'dropped':
        return this.dropped(step);
      case 'quiet':
        return this.quiet(step);
      case 'stays_away': {
        const arrived = await world.arrival(step.ms);
        if (arrived !== null) throw new Mismatch(`it connected again, after ${world.now() - this.lostAt} ms`);
        return;
      }
      case 'pass':
        return world.pass(step.ms);
      case 'shows':
        return this.shows(step);
      case 'state':
        return this.settles(
          `the state ${JSON.stringify(step.is)}`,
          () => world.state(),
          (state) => world.isState([step.is].flat(), state),
        );
      case 'task_is':
        return this.settles(
          `${step.task ?? 'job'} ${step.is}`,
          () => world.taskState(step.task ?? 'job'),
          (state) => state === step.is,
        );
      case 'draft':
        return this.settles(
          `the text ${JSON.stringify(step.text)}`,
          () => world.draft(step.task ?? 'job', step.key),
          (text) => text === step.text,
        );
      case 'tasks_are':
        return this.settles(
          `the tasks ${step.ids}`,
          () => world.tasks(),
          (ids) => JSON.stringify(ids) === JSON.stringify(step.ids),
        );
      case 'told':
        return this.settles(
          `word of ${JSON.stringify(step.of)}`,
          () => world.told(),
          (told) => told === undefined || told.some((one) => fits(step.of, one, memory)),
        );
      case 'act':
        return world.act(fill(step.action, memory));
      case 'outcome':
        return this.settles(
          `an outcome of ${step.of} as ${JSON.stringify(step.is)}`,
          () => world.outcome(step.of),
          (outcome) => fits(step.is, outcome, memory),
        );
      case 'asked':
        return this.settles(
          `a call ${JSON.stringify(step.of)}`,
          () => this.logs.asked,
          (asked) => asked.some((one) => fits(step.of, one, memory)),
        );
      default:
        throw new Error(`there is no step ${step.do}`);
    }
  }

  /** The client opens a connection, within the time it has. */
  async arrival(step) {
    const { world } = this;
    const most = step.after_ms?.max ?? 35_000;
    const arrival = await world.arrival(this.lostAt + most + world.slackMs - world.now());
    const waited = world.now() - this.lostAt;
    if (arrival === null) throw new Mismatch(`no connection was opened within ${waited} ms`);
    if (waited < (step.after_ms?.min ?? 0)) throw new Mismatch(`it connected after ${waited} ms already`);
    if (arrival.via !== (step.via ?? 'live')) throw new Mismatch(`it came by ${arrival.via}`);
    return arrival;
  }

  async accept(step) {
    const arrival = await this.arrival(step);
    if (step.ask !== undefined) check(step.ask, arrival.ask, this.memory, 'the request');
    this.lines.set(step.as, await arrival.accept());
  }

  async refuse(step) {
    const arrival = await this.arrival(step);
    this.lostAt = this.world.now();
    await arrival.refuse(step.status);
  }

  async send(name, frame) {
    await this.line(name).send(JSON.stringify(frame));
  }

  /** The client's next frame; its pongs and the end of what it gave up are passed over unless they are wanted. */
  async frame(name, wanted, within = SOON_MS) {
    const heard = await this.next(name, wanted, within);
    if (heard.closed) throw new Mismatch(`the client closed instead of sending ${wanted}`);
    return heard.frame;
  }

  /** The same, or the end. */
  async next(name, wanted, within = SOON_MS) {
    const { world } = this;
    const deadline = world.now() + within + world.slackMs;
    for (;;) {
      const heard = await this.line(name).receive(Math.max(0, deadline - world.now()));
      if (heard === null) throw new Mismatch(`no ${wanted} came`);
      const passed = ['pong', 'unsubscribe'].includes(heard.frame?.type) && heard.frame.type !== wanted;
      if (!passed) return heard;
    }
  }

  async receive(step) {
    const { world } = this;
    const { spokeAt } = this.line(step.from);
    const { min = 0, max } = step.after_ms ?? {};
    const within = max === undefined ? step.within_ms : spokeAt + max - world.now();
    const frame = await this.frame(step.from, step.frame.type, within);
    check(step.frame, frame, this.memory, 'the frame');
    const waited = world.now() - spokeAt;
    if (waited < min) throw new Mismatch(`it came after ${waited} ms already`);
    this.keepsDistance(step.from, step.apart_ms);
  }

  /**
   * What was heard last answers the server's last word, and keeps a distance from the client's frame before it. Either of
   * the two may be heard long after it was said, so the time between them as they are heard says nothing. What cannot be
   * is that it is heard before it can have been said: that is neither before the word that it answers nor before the
   * soonest of the one before it and the distance.
   */
  keepsDistance(name, ms = 0) {
    const line = this.line(name);
    const soonest = Math.max((this.soonest.get(line) ?? -Infinity) + ms, line.spokeAt);
    const early = soonest - this.world.now();
    if (early > 0) throw new Mismatch(`it came ${early} ms too soon after the one before`);
    this.soonest.set(line, soonest);
  }

  async reset(step) {
    const { memory } = this;
    const sub = fill(step.sub, memory);
    const gen = fill(step.gen, memory);
    const { why, have = 0, oldest = 1, seq, head = seq, task = 'job' } = step;
    if (step.again !== false) {
      const frame = { type: 'subscribed', sub, task, gen, outcome: 'reset', from: seq + 1, head, runs: [] };
      await this.send(step.to, frame);
    }
    await this.send(step.to, { type: 'reset', sub, gen, why, have, oldest, head });
    if (step.snapshot === false) return;
    const state = { task: this.logs.task(task), runs: [], calls: [], ...step.state };
    await this.send(step.to, { type: 'snapshot', sub, gen, seq, head, state });
  }

  /** Events as the log has them, in one frame or in one each. */
  async events(step) {
    const { memory } = this;
    const sub = fill(step.sub, memory);
    const gen = fill(step.gen, memory);
    const { first, last, task = 'job' } = step;
    const items = range(first, last)
      .filter((seq) => !(step.without ?? []).includes(seq))
      .map((seq) => eventOf(task, gen, seq, step.as_event));
    if (step.each) {
      for (const event of items) await this.send(step.to, { type: 'event', sub, event });
      return;
    }
    await this.send(step.to, { type: 'events', sub, first, last, items });
  }

  /** The client asks something, whatever it is, and is answered: a subscribe goes on where it is. */
  async answers(step) {
    const frame = await this.frame(step.from, 'question', step.within_ms);
    const { type, sub, task, gen, after, id } = frame;
    if (type === 'tasks') return this.send(step.from, { type, rev: 1, full: true, items: [], removed: [] });
    if (type === 'command')
      return this.send(step.from, { type: 'error', id, code: 'not_found', message: 'No.' });
    check({ type: 'subscribe' }, frame, this.memory, 'the frame');
    this.memory[step.save ?? 's'] = sub;
    const missed = { from: after + 1, head: after, missed: 0, runs: [] };
    return this.send(step.from, { type: 'subscribed', sub, task, gen, outcome: 'resumed', ...missed });
  }

  /** What comes is wrong again and again: it is subscribed at most once a second, and then the socket is given up. */
  async wearsOut(step) {
    const { world, memory } = this;
    const { gen, task = 'job', most = 4 } = step;
    for (let count = 0; ; count += 1) {
      await this.events({ ...step, to: step.from, sub: { $var: step.save ?? 's' } });
      const heard = await this.next(step.from, 'another subscribe or the end');
      if (heard.closed) break;
      check({ type: 'subscribe', task }, heard.frame, memory, 'the frame');
      this.keepsDistance(step.from, count > 0 ? SUBSCRIBES_EVERY_MS : 0);
      if (count >= most) throw new Mismatch(`it asked ${count + 1} times`);
      const { sub, after } = heard.frame;
      memory[step.save ?? 's'] = sub;
      const answer = { type: 'subscribed', sub, task, gen, outcome: 'resumed', from: after + 1, runs: [] };
      await this.send(step.from, { ...answer, head: step.last, missed: step.last - after });
    }
    this.lostAt = world.now();
  }

  /** The client gives the connection up. */
  async dropped(step) {
    const { world } = this;
    const line = this.line(step.from);
    const since = line.spokeAt;
    const deadline = since + (step.after_ms?.max ?? SOON_MS) + world.slackMs;
    for (;;) {
      const heard = await line.receive(Math.max(0, deadline - world.now()));
      if (heard === null) throw new Mismatch(`it was not given up within ${world.now() - since} ms`);
      if (heard.closed) break;
      if (step.says !== undefined)
        check({ $one_of: [step.says, { type: 'pong' }] }, heard.frame, this.memory, 'the frame');
    }
    const waited = world.now() - since;
    if (waited < (step.after_ms?.min ?? 0)) throw new Mismatch(`it was given up after ${waited} ms already`);
    this.lostAt = world.now();
  }

  /** For so long the client says nothing but pongs, and neither goes nor comes. */
  async quiet(step) {
    const { world } = this;
    const end = world.now() + (step.ms ?? 200);
    for (;;) {
      const left = end - world.now();
      if (left < 0) return;
      const heard = await this.line(step.from).receive(left);
      if (heard === null) break;
      if (heard.closed) throw new Mismatch('the client closed');
      if (heard.frame.type !== 'pong')
        throw new Mismatch(`nothing was to come, not ${JSON.stringify(heard.frame)}`);
    }
    if ((await world.arrival(0)) !== null) throw new Mismatch('a second connection came');
  }

  /** What the client has given out of one log: these events, in this order, each once. */
  async shows(step) {
    const { memory, world } = this;
    const gen = fill(step.gen, memory);
    const task = step.task ?? 'job';
    const wanted = step.events.flatMap(([first, last]) => range(first, last));
    const may = new Set((step.may ?? []).flatMap(([first, last]) => range(first, last)));
    const given = () => {
      const seqs = world
        .shown(task)
        .filter((event) => event.data?.log === gen)
        .map((event) => event.seq);
      // What it may have paged beside them has to be in its place, too.
      const ordered = seqs.every((seq, n) => n === 0 || seq > seqs[n - 1]);
      if (!ordered) throw new Mismatch(`events came twice or out of order: ${seqs}`);
      return seqs.filter((seq) => wanted.includes(seq) || !may.has(seq));
    };
    await this.settles(
      `the events ${JSON.stringify(step.events)}`,
      given,
      (seqs) => String(seqs) === String(wanted),
    );
  }

  /** Waits until something is so; a moment more would not change it, or a later step says so. */
  async settles(what, look, good) {
    const { world } = this;
    let found;
    for (let waited = 0; ; waited += 20) {
      await world.settle();
      found = look();
      // What a client does not show cannot be looked at.
      if (found === undefined || good(found)) return;
      if (waited > world.slackMs + 100) break;
      await world.moment(20);
    }
    throw new Mismatch(`${what} was to be there, not ${JSON.stringify(found)}`);
  }
}
