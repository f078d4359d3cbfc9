import { expect, test } from 'vitest';
import { Api, Problem } from '../src/http';

function answering(status: number, body: unknown) {
  const calls: { url: string; init: RequestInit }[] = [];
  const fetch = (async (url: string, init: RequestInit) => {
    calls.push({ url, init });
    return new Response(body === undefined ? null : typeof body === 'string' ? body : JSON.stringify(body), {
      status,
    });
  }) as typeof globalThis.fetch;
  return { api: new Api('/api/v1', fetch), calls };
}

test('an error keeps the code of the server', async () => {
  const { api } = answering(409, {
    title: 'Conflict',
    status: 409,
    code: 'run_over',
    detail: 'The run has ended.',
  });
  const error = await api.stopRun('r').catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(Problem);
  expect(error).toMatchObject({ status: 409, code: 'run_over', message: 'The run has ended.' });
});

test('an error in words of something between us and the server is still told', async () => {
  const { api } = answering(502, '<html>Bad Gateway</html>');
  await expect(api.task('a')).rejects.toMatchObject({ status: 502, code: 'unknown' });
});

test('no answer at all is an error of its own', async () => {
  const api = new Api('/api/v1', () => Promise.reject(new TypeError('failed')));
  await expect(api.task('a')).rejects.toMatchObject({ status: 0, code: 'unreachable' });
});

test('a run is started with its parameters and a key that makes it act once', async () => {
  const { api, calls } = answering(201, { run: {}, url: '' });
  await api.startRun('a b', { n: 1 }, 'key-1');
  expect(calls[0]!.url).toBe('/api/v1/tasks/a%20b/runs');
  expect(calls[0]!.init.headers).toMatchObject({ 'Idempotency-Key': 'key-1' });
  expect(calls[0]!.init.body).toBe('{"params":{}}'.replace('{}', '{"n":1}'));
});

test('what is not given is not in the address', async () => {
  const { api, calls } = answering(200, { items: [] });
  await api.events('a', { gen: null, before: 7, limit: 500 });
  expect(calls[0]!.url).toBe('/api/v1/tasks/a/events?before=7&limit=500');
});

test('a call without an answer body gives nothing', async () => {
  const { api } = answering(204, undefined);
  await expect(api.signOut()).resolves.toBeUndefined();
});
