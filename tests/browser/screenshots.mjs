// Takes pictures of the page against a real server with real runs: phone and desktop, dark and light.
// `node screenshots.mjs [folder]`; the folder is made.

import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  DESKTOP,
  PHONE,
  Receiver,
  Server,
  Wire,
  openBrowser,
  openPage,
  settled,
  signIn,
  sleep,
  state,
  until,
} from './harness.mjs';
import { FINDS, everySecond, oneStep } from './tasks.mjs';

const folder = path.resolve(process.argv[2] ?? 'screenshots');
await mkdir(folder, { recursive: true });

const LOOKS = [
  ['phone-light', PHONE, 'light'],
  ['phone-dark', PHONE, 'dark'],
  ['desktop-light', DESKTOP, 'light'],
  ['desktop-dark', DESKTOP, 'dark'],
];

const FAILS = `title = "Nightly backup"
description = "Copies the home directories to the other disk."
agent = "steps"

[schedule]
cron = "30 1 * * *"

[[steps]]
name = "copy"
thought = "Is the other disk there?"
run = "test -d /mnt/backup-disk-that-is-not-there || { echo 'no disk at /mnt' >&2; exit 3; }"
`;

const COLOURS = `title = "Look after the logs"
description = "Rotates what has grown, and says what it found."
agent = "steps"

[schedule]
every = "1h"

[params]
limit_mb = { default = 64, help = "Rotate above this size" }

[[steps]]
name = "sizes"
thought = "Which logs have grown?"
run = "printf '\\\\033[1mSize  Log\\\\033[0m\\\\n'; du -sh /var/log/* 2>/dev/null | sort -rh | head -12"

[[steps]]
name = "old"
thought = "Is there anything older than a month?"
run = "find /var/log -mtime +30 -type f | head -5; echo 'looked at everything' >&2"

[[steps]]
name = "watch"
thought = "Does anything still grow?"
run = "for i in $(seq 1 60); do printf '\\\\033[32m%s\\\\033[0m nothing grew\\\\n' \\"$(date +%T)\\"; sleep 1; done"
`;

/** Ends well, fails, or takes too long, as the clock has it. */
const MOODY = everySecond('Fetch the mail', '5s', 'case $(date +%S) in *4) exit 3;; *7) sleep 4;; esac');

const WAITS = oneStep('Copy the photos', '\n[policy]\noverlap = "queue"\n', 'sleep 600');

async function shipped() {
  const where = fileURLToPath(new URL('../../tasks', import.meta.url));
  const names = await readdir(where).catch(() => []);
  const files = names.filter((name) => name.endsWith('.toml'));
  const texts = await Promise.all(files.map((name) => readFile(path.join(where, name), 'utf8')));
  return Object.fromEntries(files.map((name, at) => [name.replace('.toml', ''), texts[at]]));
}

const browser = await openBrowser();
const pages = [];

/** A page that holds still. */
async function openLook(viewport, colorScheme) {
  const opened = await openPage(browser, { viewport, colorScheme, reducedMotion: 'reduce' });
  pages.push(opened.page);
  return opened;
}

async function eachLook(action) {
  for (const [look, viewport, colorScheme] of LOOKS) {
    const { page, context } = await openLook(viewport, colorScheme);
    await action(page, look);
    await context.close();
  }
}

async function shoot(page, name, look) {
  await sleep(600);
  await page.screenshot({ path: path.join(folder, `${name}-${look}.png`) });
  console.log(`${name}-${look}`);
}

async function overviewAndTasks() {
  const server = await Server.start({
    tasks: {
      ...(await shipped()),
      logs: COLOURS,
      certificates: FINDS,
      backup: FAILS,
      typo: 'title = "Is the shop up"\nagent = "steps"\n\n[policy]\noverlp = "skip"\n',
    },
  });
  const wire = await Wire.to(server.port);
  try {
    await eachLook(async (page, look) => {
      await page.goto(server.base);
      await page.getByRole('heading', { name: 'Sign in' }).waitFor();
      await shoot(page, 'sign-in', look);
    });
    await server.finish('certificates');
    const failed = await server.finish('backup');
    await server.finish('smart-maintenance');
    await server.finish('certificate-expiry');
    const active = await server.startRun('logs');
    await sleep(6_000);
    await eachLook(async (page, look) => {
      await signIn(page, server);
      await page.locator('[data-task]').first().waitFor();
      await shoot(page, 'overview', look);
      await page.goto(`${server.base}/tasks/certificates`);
      await settled(page);
      await shoot(page, 'attention', look);
      await page.goto(`${server.base}/tasks/smart-maintenance`);
      await settled(page);
      await shoot(page, 'task-real', look);
      await page.getByRole('button', { name: 'Run now' }).click();
      await shoot(page, 'task-parameters', look);
      await page.goto(`${server.base}/tasks/logs`);
      await settled(page);
      await shoot(page, 'task-running', look);
      await page.goto(`${server.base}/tasks/backup/runs/${failed.id}`);
      await settled(page);
      await shoot(page, 'task-failed', look);
      await page.addInitScript(() => (Math.random = () => 0.95));
      await signIn(page, server, wire.base, '/tasks/logs');
      await settled(page);
      wire.cut('rst');
      await state(page, 'reconnecting');
      await page.getByText(/Next try in/).waitFor();
      await shoot(page, 'reconnecting', look);
      wire.mend();
      await page.addInitScript(() => (Math.random = () => 0.001));
      await signIn(page, server, wire.base, '/tasks/logs');
      await settled(page);
      wire.cut('rst');
      await state(page, 'failed');
      await shoot(page, 'failed', look);
      wire.mend();
    });
    await server.call('POST', `/runs/${active.id}/stop`);
    await server.ended(active);
    await eachLook(async (page, look) => {
      await signIn(page, server, server.base, '/tasks/certificates');
      await settled(page);
      await shoot(page, 'task-ended', look);
    });
  } finally {
    await wire.close();
    await server.stop();
  }
}

/** What schedules look like: the strip, the week, the form, and what a person answers. */
async function schedules() {
  const server = await Server.start({
    tasks: {
      ...(await shipped()),
      certificates: FINDS,
      backup: FAILS,
      mail: MOODY,
      photos: WAITS,
      logs: COLOURS,
    },
  });
  try {
    await server.finish('certificates');
    await server.finish('certificates');
    const first = await server.startRun('photos');
    await server.startRun('photos');
    await server.startRun('photos');
    await sleep(25_000);
    server.process.kill('SIGSTOP');
    await sleep(9_000);
    server.process.kill('SIGCONT');
    await sleep(3_000);
    await server.call('POST', '/tasks/mail/pause', {});
    await sleep(4_000);
    await server.call('POST', '/tasks/mail/resume', {});
    await sleep(6_000);
    await server.call('POST', '/tasks/mail/pause', {});
    await server.call('POST', '/tasks', {
      id: 'shop',
      title: 'Is the shop up',
      description: 'Asks the front page of the shop, every working hour.',
      schedule: { cron: '30 2 * * *', tz: 'Europe/Berlin' },
      steps: [
        { name: 'page', thought: 'Does it answer?', run: 'curl -fsS https://shop.example/' },
        { name: 'stock', run: 'true', attention: 'exit != 0', summary: 'The stock is not to be had' },
      ],
      params: { limit_ms: { default: 800, help: 'Slower than this is told' } },
    });
    await eachLook(async (page, look) => {
      await signIn(page, server);
      await page.locator('[data-task]').first().waitFor();
      await shoot(page, 'answer', look);
      await page.getByRole('button', { name: 'Snooze …' }).first().click();
      await shoot(page, 'snooze', look);
      await page.goto(`${server.base}/tasks/mail`);
      await settled(page);
      await page.locator('[role=listbox]').focus();
      for (let n = 0; n < 12; n += 1) await page.keyboard.press('ArrowLeft');
      await shoot(page, 'strip', look);
      await page.goto(`${server.base}/tasks/certificates`);
      await settled(page);
      await shoot(page, 'attention-task', look);
      await page.goto(`${server.base}/calendar`);
      await page.locator('[data-week]').waitFor();
      await shoot(page, 'calendar', look);
      await page.goto(`${server.base}/tasks/shop/edit`);
      await page.locator('[data-preview]').waitFor();
      await page.locator('[id="field-policy.timeout"]').fill('a while');
      await page.getByLabel('Title').focus();
      await page.getByText('is not a length of time').waitFor();
      await page.evaluate(() => window.scrollTo(0, 0));
      await shoot(page, 'edit', look);
      await sleep(300);
      await page.screenshot({ path: path.join(folder, `edit-whole-${look}.png`), fullPage: true });
      await page.getByRole('button', { name: 'Cancel' }).click();
      await page.goto(`${server.base}/tasks/backup/edit`);
      await page.locator('[data-locked]').waitFor();
      await shoot(page, 'edit-file', look);
      await page.goto(`${server.base}/new`);
      await page.getByLabel('It runs').selectOption('cron');
      await page.getByLabel('Cron expression').fill('30 2 * * 7,');
      await page.locator('[data-field="schedule.cron"] .wrong').waitFor();
      await shoot(page, 'new-wrong', look);
      await page.getByLabel('Cron expression').fill('30 2 28 3 *');
      await page.getByLabel('Time zone').fill('Europe/Berlin');
      await page.getByText('clock goes forward').waitFor();
      await shoot(page, 'new-preview', look);
      await page.getByRole('button', { name: 'Cancel' }).click();
    });
    const last = (await server.call('GET', '/tasks/photos/runs')).items[0];
    await eachLook(async (page, look) => {
      await signIn(page, server, server.base, `/tasks/photos`);
      await settled(page);
      await shoot(page, 'queue', look);
      if (look !== 'desktop-dark') return;
      await server.call('POST', `/runs/${first.id}/stop`, {});
      await server.call('POST', `/runs/${last.id}/stop`, {});
    });
    const { items } = await server.call('GET', '/attention');
    await server.call('POST', `/runs/${items[0].run}/snooze`, { for: '4h' });
    await eachLook(async (page, look) => {
      await signIn(page, server);
      await page.getByRole('button', { name: 'Findings' }).click();
      await page.locator('[data-finding]').first().waitFor();
      await page.evaluate(() => window.scrollTo(0, document.documentElement.scrollHeight));
      await shoot(page, 'findings', look);
    });
  } finally {
    await server.stop();
  }
}

/** Who is told of what, and what the server does for itself: told and done, held back, on its way, and failed. */
async function ways() {
  const receiver = await Receiver.start();
  Object.assign(receiver.answers, { '/desk': 503, '/pager': 410 });
  const hour = (away) => `${String((new Date().getUTCHours() + away + 24) % 24).padStart(2, '0')}:00`;
  const server = await Server.start({
    tasks: { certificates: FINDS, backup: FAILS, ...(await shipped()) },
    config: [
      '[notify]\nretry = "1s"\n',
      receiver.webhook('chat'),
      receiver.webhook('desk', 'on = ["failed"]\n'),
      receiver.webhook('pager', 'on = ["failed"]\n'),
      receiver.channel('phone', 'ntfy', `topic = "tasks"\nquiet = "${hour(-1)}-${hour(8)}"\ntz = "UTC"\n`),
      '[backup]\nfolder = "copies"\n',
    ].join('\n'),
  });
  try {
    await eachLook(async (page, look) => {
      await signIn(page, server, server.base, '/notifications');
      await page.getByText('Nothing was told yet.').waitFor();
      await shoot(page, 'notifications-new', look);
    });
    await server.finish('certificates');
    await server.finish('backup');
    await until('each to have its deliveries', async () => {
      const { items } = await server.call('GET', '/notifications');
      const stands = new Set(items.map(({ state }) => state));
      return ['sent', 'pending', 'failed', 'held'].every((one) => stands.has(one));
    });
    for (const chore of ['retention', 'integrity', 'backup'])
      await server.call('POST', `/housekeeping/${chore}/run`, {});
    await until('the chores to be done', async () => {
      const { items } = await server.call('GET', '/housekeeping');
      return items.every(({ state }) => state === 'idle');
    });
    await eachLook(async (page, look) => {
      await signIn(page, server, server.base, '/notifications');
      await page.locator('[data-delivery="held"]').first().waitFor();
      await shoot(page, 'notifications', look);
      await page.getByRole('button', { name: 'Send a test by pager' }).click();
      await page.locator('[data-channel="pager"]').getByText('Not delivered').waitFor();
      await shoot(page, 'notifications-tested', look);
      await page.goto(`${server.base}/housekeeping`);
      await page.locator('[data-chore="backup"]').getByText('Done').waitFor();
      await shoot(page, 'housekeeping', look);
    });
    // A file where the folder for copies was.
    await rm(path.join(server.folder, 'copies'), { recursive: true });
    await writeFile(path.join(server.folder, 'copies'), '');
    await server.call('POST', '/housekeeping/backup/run', {});
    await eachLook(async (page, look) => {
      await signIn(page, server, server.base, '/housekeeping');
      await page.locator('[data-chore="backup"]').getByText('Failed').waitFor();
      await shoot(page, 'housekeeping-failed', look);
    });
  } finally {
    await server.stop();
    await receiver.close();
  }
}

async function empty() {
  const server = await Server.start();
  await eachLook(async (page, look) => {
    await signIn(page, server);
    await page.getByText('No tasks yet').waitFor();
    await shoot(page, 'overview-empty', look);
    await page.goto(`${server.base}/notifications`);
    await page.getByText('Nobody yet.').waitFor();
    await shoot(page, 'notifications-none', look);
    await page.goto(`${server.base}/housekeeping`);
    await page.locator('[data-chore="backup"]').getByText('Not set up').waitFor();
    await shoot(page, 'housekeeping-off', look);
  });
  await server.stop();
}

/** The log of a task that was removed and made again while the page was away. */
async function reset() {
  const server = await Server.start();
  const wire = await Wire.to(server.port);
  const make = () =>
    server.call('POST', '/tasks', {
      id: 'remade',
      title: 'A task made again',
      agent: 'steps',
      steps: [{ name: 'say', thought: 'Is this the same task?', run: 'echo it has the same name' }],
      run: false,
    });
  await eachLook(async (page, look) => {
    await make();
    await server.finish('remade');
    await signIn(page, server, wire.base, '/tasks/remade');
    await settled(page);
    wire.cut('rst');
    await state(page, 'reconnecting');
    await server.call('DELETE', '/tasks/remade?stop=true');
    await make();
    await server.finish('remade');
    wire.mend();
    await page.locator('[data-reset]').waitFor({ timeout: 30_000 });
    await shoot(page, 'reset', look);
    await server.call('DELETE', '/tasks/remade?stop=true');
  });
  await wire.close();
  await server.stop();
}

async function diskFull() {
  const server = await Server.start({ tasks: { logs: COLOURS } });
  const looks = [];
  try {
    // Signing in is saved too, so everybody is there before the disk is full.
    for (const [look, viewport, colorScheme] of LOOKS) {
      const { page, context } = await openLook(viewport, colorScheme);
      looks.push([page, look, context]);
      await signIn(page, server, server.base, '/tasks/logs');
    }
    await server.startRun('logs');
    await sleep(4_000);
    await server.fillDisk();
    for (const [page, look] of looks) {
      await page.locator('[data-notice="store_not_writable"]').waitFor({ timeout: 60_000 });
      await shoot(page, 'disk-full', look);
    }
    await server.emptyDisk();
    for (const [, , context] of looks) await context.close();
  } finally {
    await server.stop();
  }
}

/** The two pictures of the README: what ships, with one run under way. */
async function readme() {
  const server = await Server.start({
    tasks: { ...(await shipped()), certificates: FINDS, backup: FAILS },
  });
  const browse = async (colorScheme, where) => {
    const { page } = await openLook(DESKTOP, colorScheme);
    await signIn(page, server, server.base, where);
    return page;
  };
  try {
    await Promise.all(['certificates', 'backup', 'backup-freshness'].map((task) => server.finish(task)));
    const run = await server.startRun('long-task', { seconds: 8 });
    const task = await browse('dark', '/tasks/long-task');
    await settled(task);
    await sleep(11_000);
    await shoot(task, 'readme', 'task');
    const overview = await browse('light', '/');
    await overview.locator('[data-task="long-task"]').getByText('Running').waitFor();
    await shoot(overview, 'readme', 'overview');
    await overview.setViewportSize(PHONE);
    await overview.getByRole('button', { name: 'Signed-in browsers' }).click();
    await overview.locator('[data-device]').first().waitFor();
    await overview.evaluate(() => window.scrollTo(0, document.documentElement.scrollHeight));
    await shoot(overview, 'devices', 'phone-light');
    await server.call('POST', `/runs/${run.id}/stop`);
    await server.ended(run);
  } finally {
    await server.stop();
  }
}

const ALL = { overviewAndTasks, schedules, ways, empty, reset, diskFull, readme };
const wanted = process.argv.slice(3);
let bad = false;
for (const [name, action] of Object.entries(ALL)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  try {
    await action();
  } catch (error) {
    bad = true;
    console.error(`${name}: ${error.stack}`);
  }
}
await browser.close();
for (const complaint of new Set(pages.flatMap((page) => page.complaints))) {
  bad = true;
  console.error(complaint);
}
process.exitCode = bad ? 1 : 0;
