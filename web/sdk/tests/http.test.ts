import { expect, test } from 'vitest';
import type { Command } from '../src/frames';
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
  const error = await api.call('POST', '/runs/r/stop').catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(Problem);
  expect(error).toMatchObject({ status: 409, code: 'run_over', message: 'The run has ended.' });
});

test('an error in words of something between us and the server is still told', async () => {
  const { api } = answering(502, '<html>Bad Gateway</html>');
  await expect(api.call('GET', '/tasks/a')).rejects.toMatchObject({ status: 502, code: 'unknown' });
});

test('no answer at all is an error of its own', async () => {
  const api = new Api('/api/v1', () => Promise.reject(new TypeError('failed')));
  await expect(api.call('GET', '/tasks/a')).rejects.toMatchObject({ status: 0, code: 'unreachable' });
});

test('a run is started with its parameters and a key that makes it act once', async () => {
  const { api, calls } = answering(201, { run: { id: 'r' }, url: '' });
  await expect(api.act({ op: 'run', task: 'a b', params: { n: 1 } }, 'key-1')).resolves.toEqual({ id: 'r' });
  expect(calls[0]!.url).toBe('/api/v1/tasks/a%20b/runs');
  expect(calls[0]!.init.headers).toMatchObject({ 'Idempotency-Key': 'key-1' });
  expect(calls[0]!.init.body).toBe('{"params":{"n":1}}');
});

test.each([
  [{ op: 'stop', run: 'r 1' }, '/runs/r%201/stop', '{}'],
  [{ op: 'message', run: 'r', text: 'Hi' }, '/runs/r/message', '{"text":"Hi"}'],
  [{ op: 'approve', run: 'r', request: 'q' }, '/runs/r/approve', '{"request":"q"}'],
  [{ op: 'deny', run: 'r', request: 'q' }, '/runs/r/deny', '{"request":"q"}'],
] as [Command, string, string][])('%j is a call as well', async (command, path, body) => {
  const { api, calls } = answering(202, { id: 'r', state: 'running' });
  await expect(api.act(command, 'key-1')).resolves.toMatchObject({ id: 'r' });
  expect(calls[0]!.url).toBe(`/api/v1${path}`);
  expect(calls[0]!.init.body).toBe(body);
});

test('a word to a task has no call of its own', () => {
  expect(answering(200, {}).api.act({ op: 'message', task: 'a', text: 'Hi' }, 'k')).toBeNull();
});

test('a token goes into a header and nowhere else', async () => {
  const calls: { url: string; init: RequestInit }[] = [];
  const fetch = (async (url: string, init: RequestInit) => {
    calls.push({ url, init });
    return new Response('{}');
  }) as typeof globalThis.fetch;
  await new Api('http://h/api/v1', fetch, 'secret').status();
  expect(calls[0]!.url).toBe('http://h/api/v1/status');
  expect(calls[0]!.init.headers).toMatchObject({ Authorization: 'Bearer secret' });
});

test('what is not given is not in the address', async () => {
  const { api, calls } = answering(200, { items: [] });
  await api.events('a', { gen: null, before: 7, limit: 500 });
  expect(calls[0]!.url).toBe('/api/v1/tasks/a/events?before=7&limit=500');
});

test('a call without an answer body gives nothing', async () => {
  const { api } = answering(204, undefined);
  await expect(api.call('DELETE', '/session')).resolves.toBeUndefined();
});
