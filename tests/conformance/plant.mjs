// Plants the faults of faults.json one after the other in a work tree of its own, and has the kit look for each.
//
//   node tests/conformance/plant.mjs [--only ID] [--write]
//
// Each has to be found, by the case that faults.json names, and the code without any of them has to pass. `--write`
// fills those names in. Takes a build for each fault: `make faults`.

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const list = path.join(root, 'tests/conformance/faults.json');
const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : null;
const write = process.argv.includes('--write');

const target = process.env.CARGO_TARGET_DIR ?? path.join(root, 'target/faults');
const tree = path.join(mkdtempSync(path.join(tmpdir(), 'rejoin-faults-')), 'tree');
const git = (...args) => execFileSync('git', ['-C', root, ...args], { encoding: 'utf8' });

/** Runs a part of the kit in the tree; gives the cases that fail there. */
function look(program, args, folder = '.') {
  const { stdout, stderr, status } = spawnSync(program, args, {
    cwd: path.join(tree, folder),
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env: {
      ...process.env,
      CARGO_TARGET_DIR: target,
      REJOIN_BIN: path.join(target, 'debug/rejoin'),
      NO_COLOR: '1',
    },
  });
  const failed = new Set();
  for (const [, name] of stdout.matchAll(/^ *not ok .*?((?:server|client)\/[\w./-]+): /gm)) failed.add(name);
  if (status !== 0 && failed.size === 0) {
    throw new Error(
      `${program} ${args.join(' ')} failed, and not by a case:\n${stdout.slice(-3000)}${stderr.slice(-3000)}`,
    );
  }
  return failed;
}

const PARTS = {
  server: () =>
    look('cargo', [
      'test',
      '--locked',
      '--features',
      'failpoints',
      '--test',
      'it',
      '--',
      'conformance::the_server',
      '--nocapture',
    ]),
  sdk: () =>
    look('node_modules/.bin/vitest', ['run', 'tests/conformance.test.mjs', '--reporter=tap-flat'], 'web'),
  cli: () => {
    look('cargo', ['build', '--locked', '--features', 'failpoints']);
    return look('node', ['--test', '--test-reporter=tap', 'tests/conformance/client.test.mjs']);
  },
};

/** Which parts of the kit can see a file. */
function partsOf(file) {
  if (file.startsWith('web/')) return ['sdk'];
  return file.startsWith('src/cli/') ? ['cli'] : ['server'];
}

function plant({ id, edits }) {
  for (const { file, find, replace } of edits) {
    const name = path.join(tree, file);
    const text = readFileSync(name, 'utf8');
    if (text.split(find).length !== 2) throw new Error(`${id}: ${file} does not have this once: ${find}`);
    writeFileSync(
      name,
      text.replace(find, () => replace),
    );
  }
}

/** Gives every fault a case of its own among those that found it; null where that cannot be done. */
function assign(found) {
  const holder = new Map();
  const place = (id, seen) =>
    found.get(id).some((name) => {
      if (seen.has(name)) return false;
      seen.add(name);
      if (holder.has(name) && !place(holder.get(name), seen)) return false;
      holder.set(name, id);
      return true;
    });
  for (const id of found.keys()) if (!place(id, new Set())) return null;
  return new Map([...holder].map(([name, id]) => [id, name]));
}

const { about, faults } = JSON.parse(readFileSync(list, 'utf8'));
const wrong = [];
const found = new Map();
git('worktree', 'add', '--quiet', '--detach', tree, 'HEAD');
try {
  const modules = path.join(root, 'web/node_modules');
  if (!existsSync(path.join(tree, 'web/node_modules')))
    symlinkSync(modules, path.join(tree, 'web/node_modules'));
  if (only === null) {
    const failed = Object.values(PARTS).flatMap((part) => [...part()]);
    console.log(
      `without a fault: ${failed.length === 0 ? 'every case passes' : `FAILS ${failed.join(' ')}`}`,
    );
    if (failed.length > 0) wrong.push('the code without a fault does not pass');
  }
  for (const fault of faults.filter(({ id }) => only === null || id === only)) {
    plant(fault);
    const parts = new Set(fault.edits.flatMap(({ file }) => partsOf(file)));
    const failed = [...parts].flatMap((part) => [...PARTS[part]()]).sort();
    execFileSync('git', ['-C', tree, 'checkout', '--quiet', '--', '.']);
    found.set(fault.id, failed);
    console.log(
      `${fault.id}: ${failed.length === 0 ? 'NOT FOUND' : `found by ${failed.length}: ${failed.slice(0, 6).join(' ')}`}`,
    );
    if (failed.length === 0) wrong.push(`${fault.id} is not found`);
    else if (!write && !failed.includes(fault.found_by))
      wrong.push(`${fault.id} is not found by ${fault.found_by}`);
  }
} finally {
  git('worktree', 'remove', '--force', tree);
  rmSync(path.dirname(tree), { recursive: true, force: true });
}
if (write && wrong.length === 0) {
  const finders = assign(new Map([...found].map(([id, names]) => [id, [...names]])));
  if (finders === null) wrong.push('two faults are found by the same case only');
  else {
    for (const fault of faults) fault.found_by = finders.get(fault.id) ?? fault.found_by;
    writeFileSync(list, `${JSON.stringify({ about, faults }, null, 2)}\n`);
  }
}
for (const words of wrong) console.error(`wrong: ${words}`);
process.exitCode = wrong.length > 0 ? 1 : 0;
