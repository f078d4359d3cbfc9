// Who is told by other ways than the page, as the page shows it: a real server with channels, and a receiver that answers
// or does not.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { PHONE, Receiver, Stage, isFitEverywhere, signIn, until } from './harness.mjs';
import { oneStep } from './tasks.mjs';

const stage = new Stage();
let server;
let receiver;

before(async () => {
  receiver = await Receiver.start();
  receiver.answers['/refused'] = 410;
  ({ server } = await stage.serveAll({
    tasks: { shop: oneStep('Shop', '', 'echo no; exit 3') },
    config: [
      '[notify]\nretry = "10ms"\n',
      receiver.webhook('chat', 'on = ["failed", "late"]\n'),
      receiver.webhook('refused', 'on = []\n'),
    ].join(''),
  }));
});

after(() => receiver?.close());

/** The kinds of what arrived, each with its path. */
const heard = () => receiver.heard.map(({ path, text }) => [path, JSON.parse(text).type]);

async function open(where, options = {}) {
  const { page } = await stage.open(options);
  await signIn(page, server, server.base, where);
  return page;
}

const channelOf = (page, name) => page.locator(`[data-channel="${name}"]`);

test('SEE-11: a test is sent at the press of a button, and the page says whether it arrived, and why not', async () => {
  const page = await open('/');
  await page.getByRole('link', { name: 'Notifications' }).click();
  await page.waitForURL('**/notifications');
  await channelOf(page, 'chat').getByText('Webhook').waitFor();
  await channelOf(page, 'chat').getByText('Told of: failures, late starts').waitFor();
  await page.getByText('Nothing was told yet.').waitFor();

  await page.getByRole('button', { name: 'Send a test by chat' }).click();
  await channelOf(page, 'chat').getByRole('status').getByText('Sent').waitFor();
  assert.deepEqual(heard(), [['/chat', 'test']]);
  await page.locator('[data-delivery="sent"]').getByText('By chat').waitFor();

  await page.getByRole('button', { name: 'Send a test by refused' }).click();
  const told = channelOf(page, 'refused').getByRole('status');
  await told.getByText('Not delivered').waitFor();
  await told.getByText('410').waitFor();
  await page.locator('[data-delivery="failed"]').getByText('410').waitFor();
  await isFitEverywhere(page);
  const { items } = await server.call('GET', '/notifications');
  assert.deepEqual(
    items.map(({ channel, event, state }) => [channel, event, state]),
    [
      ['refused', 'test', 'failed'],
      ['chat', 'test', 'sent'],
    ],
  );
});

test('SEE-11: what was told of a run appears while one looks, with how it fares, and leads to the run', async () => {
  receiver.answers['/chat'] = 503;
  const page = await open('/notifications', { viewport: PHONE });
  await channelOf(page, 'chat').waitFor();
  const { id } = await server.startRun('shop');
  await page.locator('[data-delivery="pending"]').getByText('On its way').waitFor();
  await until('it to be tried again', async () => heard().filter(([, type]) => type === 'failed').length > 1);
  receiver.answers['/chat'] = 200;
  const line = page.locator('[data-delivery]', { has: page.locator(`a[href$="${id}"]`) });
  await line.and(page.locator('[data-delivery="sent"]')).waitFor();
  await line.getByText(/By chat, .* tried \d+ times/).waitFor();
  await line.getByRole('link').click();
  await page.waitForURL(`**/tasks/shop/runs/${id}`);
});
