// A control program for this project's own server (README.md, "A server in another language"): starts the real program
// and brings about, over its public interface, what a case wants. What cannot be had that way it says it cannot.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import readline from 'node:readline';
import { fileURLToPath } from 'node:url';

const here = fileURLToPath(new URL('.', import.meta.url));
const binary = path.resolve(process.env.REJOIN_BIN ?? path.join(here, '../../target/debug/rejoin'));
const home = mkdtempSync(path.join(tmpdir(), 'rejoin-kit-'));

class Cannot extends Error {}

let server = null;
let address = '';
let token = '';
/** The runs that were begun, by the case's name: their ids, and the last number that was said. */
const runs = new Map();

function configure(settings) {
  const ms = (value) => value !== undefined && value !== null && `"${value}ms"`;
  const bytes = (value) => value !== undefined && value !== null && `"${value} B"`;
  const number = (value) => value !== undefined && value !== null && String(value);
  const keys = {
    heartbeat: ms(settings.heartbeat_ms ?? 600_000),
    life: ms(settings.life_ms ?? 1_200_000),
    hello_deadline: ms(settings.hello_ms),
    replay_events: number(settings.replay_events),
    replay_bytes: bytes(settings.replay_bytes),
    ring_events: number(settings.ring_events),
    subscriptions: number(settings.subscriptions),
    connections: number(settings.sockets),
    connections_per_credential: number(settings.sockets_per_credential),
    unauthenticated: number(settings.sockets_without_hello),
    slow_bytes: bytes(settings.slow_bytes),
    slow_window: ms(settings.slow_window_ms),
  };
  const lines = Object.entries(keys).map(([key, value]) => (value ? `${key} = ${value}\n` : ''));
  mkdirSync(path.join(home, 'tasks'));
  const top = 'listen = "127.0.0.1:0"\ndata_dir = "data"\ntasks_dir = "tasks"\n';
  writeFileSync(path.join(home, 'config.toml'), `${top}[stream]\n${lines.join('')}`);
}

/** Whoever plays the cases may kill this program, which then can end nothing any more: somebody else has to. */
function outliveNobody(child) {
  const script = 'while kill -0 "$1" 2>/dev/null; do sleep 1; done; kill -9 "$2"; rm -rf "$3"';
  const guard = spawn('sh', ['-c', script, 'sh', String(process.pid), String(child.pid), home], {
    detached: true,
    stdio: 'ignore',
  });
  guard.unref();
  child.once('exit', () => guard.kill('SIGKILL'));
}

async function start() {
  server = spawn(binary, ['serve', '--config', path.join(home, 'config.toml')], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  outliveNobody(server);
  for await (const line of readline.createInterface({ input: server.stdout })) {
    address = /http:\/\/([\d.:]+)/.exec(line)?.[1] ?? '';
    break;
  }
  if (address === '') throw new Error('the server did not start');
  // The rest of what it says is nobody's.
  server.stdout.resume();
  token = readFileSync(path.join(home, 'data/token'), 'utf8').trim();
  return { address, token };
}

async function call(method, where, body, kind = 'application/json') {
  const response = await fetch(`http://${address}/api/v1${where}`, {
    method,
    headers: { authorization: `Bearer ${token}`, 'content-type': kind },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw new Error(`${method} ${where}: ${response.status} ${JSON.stringify(answer)}`);
  return answer;
}

/** Events as a runner elsewhere sends them: numbered by itself, and saved when the answer is there. */
async function say(run, events) {
  const held = runs.get(run);
  const lines = events.map(({ kind, data }) => `${JSON.stringify({ n: (held.n += 1), kind, data })}\n`);
  await call('POST', `/runs/${held.id}/events`, lines.join(''), 'application/x-ndjson');
}

const WORK = {
  said: { agent: 'external' },
  ends: { steps: [{ name: 'only', run: 'true' }] },
  waits: { steps: [{ name: 'only', run: 'exec sleep 600' }] },
};

const ACTS = {
  async start({ settings }) {
    configure(settings);
    return start();
  },
  async task({ task, work }) {
    await call('POST', '/tasks', { id: task, title: task, run: false, ...WORK[work] });
  },
  async begin({ task, run, queued_only: queuedOnly }) {
    if (queuedOnly) throw new Cannot('a run that is opened has started');
    const { run: made } = await call('POST', `/tasks/${task}/runs`, {});
    runs.set(run, { id: made.id, n: 0 });
    return { run: made.id };
  },
  async say({ run, events }) {
    // One request for each, so that each is a row of the log; of many, one for all.
    if (events.length > 50) await say(run, events);
    else for (const event of events) await say(run, [event]);
  },
  async end({ run, state }) {
    if (!['succeeded', 'failed', 'cancelled'].includes(state))
      throw new Cannot(`a runner does not say ${state}`);
    await say(run, [{ kind: 'status', data: { state, text: state } }]);
  },
  async delta() {
    throw new Cannot('no agent of the program that is shipped writes as it goes');
  },
  async forget() {
    throw new Cannot('retention takes whole runs, in its own time');
  },
  async notice() {
    throw new Cannot('nothing is amiss');
  },
  async restart() {
    server.kill('SIGTERM');
    await once(server, 'exit');
    return start();
  },
  async drain() {
    server.kill('SIGTERM');
  },
};

process.on('exit', () => {
  server?.kill('SIGKILL');
  rmSync(home, { recursive: true, force: true });
});
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => process.exit(1));

for await (const line of readline.createInterface({ input: process.stdin })) {
  const told = JSON.parse(line);
  let answer;
  try {
    answer = (await ACTS[told.do](told)) ?? {};
  } catch (error) {
    answer = error instanceof Cannot ? { cannot: error.message } : { error: String(error.message) };
  }
  console.log(JSON.stringify(answer));
}
process.exit(0);
