// What others get: the files that are built, how large they are, and what the README says of them.

import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'vite';
import { beforeAll, expect, test } from 'vitest';

const folder = fileURLToPath(new URL('..', import.meta.url));
const text = (path: string) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8');
const about = JSON.parse(text('package.json')) as {
  exports: Record<string, { source: string; types: string; default: string }>;
  dependencies?: object;
  peerDependencies?: object;
  sideEffects: boolean;
  license: string;
  files: string[];
};

const files = new Map<string, string>();

beforeAll(async () => {
  const built = await build({
    root: folder,
    configFile: `${folder}/vite.config.ts`,
    logLevel: 'error',
    build: { write: false },
  });
  for (const { output } of [built].flat() as { output: { fileName: string; code?: string }[] }[]) {
    for (const { fileName, code } of output) files.set(fileName, code ?? '');
  }
}, 60_000);

const compressed = (name: string) => gzipSync(files.get(name)!, { level: 9 }).length;

test('the client is less than 12 kB compressed, and loads nothing else', () => {
  expect(compressed('index.js')).toBeLessThan(12_000);
  expect(files.get('index.js')).not.toMatch(/\bimport\b|\brequire\b/);
});

test.each([
  ['log.js', 2_000],
  ['outbox.js', 2_500],
  ['tabs.js', 3_000],
])('%s is less than %i bytes, and loads nothing but the client', (name, most) => {
  expect(compressed(name)).toBeLessThan(most);
  expect([...files.get(name)!.matchAll(/from\s*"([^"]+)"/g)].map(([, from]) => from)).toEqual(['./index.js']);
});

test('there is a file for everything that can be imported, and no other', () => {
  const named = Object.values(about.exports).map((one) => one.default.replace('./dist/', ''));
  expect([...files.keys()].sort()).toEqual(named.sort());
  for (const { source } of Object.values(about.exports)) expect(existsSync(`${folder}/${source}`)).toBe(true);
});

test('it depends on nothing, does nothing by being loaded, and may be used by anybody', () => {
  expect(about.dependencies).toBeUndefined();
  expect(about.peerDependencies).toBeUndefined();
  expect(about.sideEffects).toBe(false);
  expect(about.license).toBe('MIT OR Apache-2.0');
  expect(about.files).toEqual(['dist']);
});

test.each([
  ['browser.html', 'html'],
  ['node.mjs', 'js'],
])('the example %s is that of the README and has ten lines at most', (name, language) => {
  const example = text(`examples/${name}`);
  expect(text('README.md')).toContain(`\`\`\`${language}\n${example}\`\`\``);
  expect(example.trim().split('\n').length).toBeLessThanOrEqual(10);
});

test('no credential is kept by a browser: nothing speaks of web storage or cookies', () => {
  for (const [name, code] of files)
    expect(code, name).not.toMatch(/localStorage|sessionStorage|document\.cookie/);
});
