// What the server does for itself, as the page shows it: a real server, with and without a folder for copies.

import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { Stage, isFitEverywhere, signIn } from './harness.mjs';

const stage = new Stage();

async function open(config, where) {
  const { server } = await stage.serve({ config });
  const { page } = await stage.open();
  await signIn(page, server, server.base, where);
  return { server, page };
}

test('SEE-12: the chores of the server are shown with what came of them, and are done when asked', async () => {
  const { server, page } = await open('[backup]\nfolder = "copies"\n', '/');
  await page.getByRole('link', { name: 'Housekeeping' }).click();
  await page.waitForURL('**/housekeeping');
  const { items } = await server.call('GET', '/housekeeping');
  for (const { id, title } of items)
    await page.locator(`[data-chore="${id}"]`).getByText(title).first().waitFor();
  assert.equal(await page.locator('[data-chore]').count(), items.length);
  const before = items.find(({ id }) => id === 'integrity').last?.at ?? null;
  await page.getByRole('button', { name: /Do it now.*Looks through the store/ }).click();
  const chore = page.locator('[data-chore="integrity"]');
  await page.waitForFunction((was) => {
    const line = document.querySelector('[data-chore="integrity"]');
    return (
      line.querySelector('time[data-last]')?.dateTime !== (was ?? undefined) && /Done/.test(line.textContent)
    );
  }, before);
  const after = (await server.call('GET', '/housekeeping')).items.find(({ id }) => id === 'integrity');
  await chore.getByText(after.last.result, { exact: true }).waitFor();
  await page.getByRole('button', { name: /Do it now.*Makes a copy/ }).click();
  await page.locator('[data-chore="backup"]').getByText('Done').waitFor();
  assert.ok((await readdir(path.join(server.folder, 'copies'))).length > 0);
  await isFitEverywhere(page);
});

test('SEE-12: a chore that is off has no button and says how it is set up', async () => {
  const { page } = await open('', '/housekeeping');
  const backup = page.locator('[data-chore="backup"]');
  await backup.getByText('Not set up').waitFor();
  assert.equal(await backup.getByRole('button').count(), 0);
});
