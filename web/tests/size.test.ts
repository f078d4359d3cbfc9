// The page comes over slow networks too. What a first load takes, compressed as the server does.

import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { expect, test } from 'vitest';

const LIMIT = 120_000;
const dist = fileURLToPath(new URL('../dist/', import.meta.url));

test.skipIf(!existsSync(dist))('the first load of the built page is less than 120 kB', () => {
  const files = readdirSync(dist, { recursive: true, withFileTypes: true }).filter((one) => one.isFile());
  const sizes = files.map((one) => gzipSync(readFileSync(`${one.parentPath}/${one.name}`)).length);
  expect(sizes.reduce((sum, size) => sum + size, 0)).toBeLessThan(LIMIT);
});
