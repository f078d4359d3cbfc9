// How long a task with some 200,000 events takes until something of it stands on the page. Not a test: a measurement.
// `npm run measure`. The events are written into the database while the server is down, as the server writes them.

import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { Server, countingTask, openBrowser, openPage, signIn } from './harness.mjs';

const execute = promisify(execFile);

/** Twenty runs of 9,999 events each: thoughts, calls, output and results. */
const FILL = `
import datetime, json, sqlite3, struct, sys
database = sqlite3.connect(sys.argv[1])
number, seq, total = database.execute("SELECT no, head, bytes FROM tasks WHERE id = 'large'").fetchone()
columns = [column[1] for column in database.execute('PRAGMA table_info(runs)')]
model = dict(zip(columns, database.execute('SELECT * FROM runs').fetchone()))
start = int(datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc).timestamp()) * 1000000

def stamp(micros):
    return datetime.datetime.fromtimestamp(micros / 1e6, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.%fZ')

def events():
    yield 'status', {'state': 'queued', 'text': 'Queued', 'attempt': 1, 'trigger': 'hand', 'params': {}}
    yield 'status', {'state': 'started', 'text': 'Task large: Starting execution...'}
    for n in range(1, 2500):
        call, text = f'c{n}', f'number {n} of many\\n'
        yield 'thought', {'text': f'Step {n}: what does this one say?'}
        yield 'tool_use', {'call': call, 'tool': 'shell', 'input': {'command': f'echo number {n} of many'}}
        yield 'tool_output', {'call': call, 'stream': 'stdout', 'text': text}
        yield 'tool_result', {'call': call, 'tool': 'shell', 'ok': True, 'output': text, 'exit': 0, 'duration_ms': 3}
    yield 'status', {'state': 'succeeded', 'text': 'Task large completed successfully', 'duration_ms': 9999, 'exit': 0}

for n in range(20):
    run = model['id'][:-2] + format(160 + n, '02x')
    first, all = seq + 1, list(events())
    for part in (all[at:at + 100] for at in range(0, len(all), 100)):
        texts, ends, end, begin = [], b'', -1, seq + 1
        for kind, data in part:
            seq += 1
            event = {'task': 'large', 'run': run, 'seq': seq, 'at': stamp(start + seq * 1000), 'kind': kind, 'data': data}
            texts.append(json.dumps(event, separators=(',', ':')))
            total += len(texts[-1])
            end += len(texts[-1]) + 1
            ends += struct.pack('<I', end)
        database.execute('INSERT INTO segments (key, first, at, total, ends, items) VALUES (?, ?, ?, ?, ?, ?)',
            (number << 40 | seq, begin, start + seq * 1000, total, ends, ','.join(texts)))
    facts = json.loads(model['run']) | {'id': run, 'first_seq': first, 'last_seq': seq}
    row = model | {'id': run, 'first': first, 'last': seq, 'run': json.dumps(facts)}
    database.execute(f"INSERT INTO runs ({','.join(row)}) VALUES ({','.join('?' * len(row))})", list(row.values()))
database.execute('UPDATE tasks SET head = ?, bytes = ? WHERE no = ?', (seq, total, number))
database.commit()
`;

const server = await Server.start({ tasks: { large: countingTask(2, 0.1, 'A long history') } });
const browser = await openBrowser();
try {
  await server.finish('large');
  await server.halt();
  await execute('python3', ['-c', FILL, path.join(server.folder, 'data', 'rejoin.db')]);
  await server.run();
  console.log(`${(await server.call('GET', '/tasks/large')).head} events`);
  for (let times = 0; times < 5; times += 1) {
    const { page, context } = await openPage(browser);
    await signIn(page, server);
    await page.goto(`${server.base}/tasks/large`, { waitUntil: 'commit' });
    const found = await page.evaluate(
      () =>
        new Promise((done) => {
          let first = 0;
          const look = () => {
            if (first === 0 && document.querySelector('.timeline [data-seq]')) first = performance.now();
            const whole = document.querySelector('.timeline[data-settled="true"]');
            if (first === 0 || whole === null) return requestAnimationFrame(look);
            const paint = performance.getEntriesByName('first-contentful-paint')[0]?.startTime;
            const { count } = whole.dataset;
            return done({ paint, first, whole: performance.now(), count });
          };
          look();
        }),
    );
    const ms = (value) => `${Math.round(value)} ms`;
    console.log(
      `first paint ${ms(found.paint)}, first events ${ms(found.first)}, last run (${found.count} events) ${ms(found.whole)}`,
    );
    await context.close();
  }
} finally {
  await browser.close();
  await server.stop();
}
