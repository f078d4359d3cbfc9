// The cases of tests/conformance/client, played against a client that is a program: `rejoin watch`, or with CLIENT
// another one, which CAN do what is named beside following one task (README.md, "A client in another language").

import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Listening } from './fake/listening.mjs';
import { check, fill, fits } from './fake/pattern.mjs';
import { play } from './fake/play.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const rejoin = path.resolve(process.env.REJOIN_BIN ?? path.join(here, '../../target/debug/rejoin'));

const command = process.env.CLIENT?.split(' ') ?? [
  rejoin,
  'watch',
  '{task}',
  '--json',
  '--server',
  '{server}',
];
const can = (process.env.CAN ?? 'pages,sees_status').split(',');

const files = readdirSync(path.join(here, 'client'), { recursive: true })
  .filter((name) => name.endsWith('.json'))
  .map((name) => path.join('client', name))
  .filter((name) => name.includes(process.env.CASE ?? ''))
  .sort();

describe('a client that is a program does what every case it can says', { concurrency: 6 }, () => {
  for (const file of files) {
    const casus = JSON.parse(readFileSync(path.join(here, file), 'utf8'));
    const cannot = (casus.needs ?? []).filter((need) => !can.includes(need));
    const skip = cannot.length > 0 && `this client has no ${cannot.join(', ')}`;
    test(`${file.replace(/\.json$/, '')}: ${casus.case}`, { skip }, async () => {
      const world = new Listening(command, { REJOIN_TOKEN: 't'.repeat(43) });
      try {
        await play(casus, world);
      } catch (error) {
        throw new Error(`${error.message}\n${world.words}`, { cause: error });
      }
    });
  }
});

test('patterns mean here what they mean in the other languages', () => {
  const { examples, filled } = JSON.parse(readFileSync(path.join(here, 'patterns.json'), 'utf8'));
  for (const { pattern, value, memory = {}, fits: wanted, saved } of examples) {
    assert.equal(fits(pattern, value, memory), wanted, JSON.stringify({ pattern, value }));
    if (saved === undefined) continue;
    check(pattern, value, memory);
    assert.deepEqual(memory, saved);
  }
  for (const { from, memory = {}, to } of filled) assert.deepEqual(fill(from, memory), to);
});
