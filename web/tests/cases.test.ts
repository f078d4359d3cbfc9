// The files of tests/conformance are what their schemas say.

import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { expect, test } from 'vitest';

const KIT = fileURLToPath(new URL('../../tests/conformance/', import.meta.url));

const read = (name: string) =>
  JSON.parse(readFileSync(path.join(KIT, name), 'utf8')) as Record<string, unknown>;

test.each(['server', 'client'])('every case for a %s is as its schema says', (side) => {
  const isCase = new Ajv2020({ allErrors: true, discriminator: false }).compile(read(`schema/${side}.json`));
  const names = readdirSync(path.join(KIT, side), { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.json'),
  );
  expect(names.length).toBeGreaterThan(50);
  for (const name of names) {
    const file = path.join(side, name);
    const one = read(file);
    expect(
      isCase(one) ? [] : isCase.errors?.map(({ instancePath, message }) => `${instancePath} ${message}`),
      file,
    ).toEqual([]);
    expect(path.join(path.dirname(file), one.$schema as string), file).toBe(`schema/${side}.json`);
  }
});
