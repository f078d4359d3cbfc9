import { expect, test } from 'vitest';
import { readStream } from '../src/feed';

async function read(...chunks: string[]) {
  const body = new ReadableStream<Uint8Array>({
    start(writer) {
      for (const chunk of chunks) writer.enqueue(new TextEncoder().encode(chunk));
      writer.close();
    },
  });
  const events = [];
  for await (const { event, data, id } of readStream(body)) events.push([event, data.trimEnd(), id]);
  return events;
}

test('events are read by name, data and id', async () => {
  expect(await read('event: a\nid: 1\ndata: x\n\n', 'data: y\n\n')).toEqual([
    ['a', 'x', '1'],
    // An id stays until there is another.
    ['message', 'y', '1'],
  ]);
});

test.each(['\n', '\r\n', '\r'])('lines may end in %j', async (end) => {
  const text = ['event: a', 'data: x', '', 'event: b', 'data: y', '', ''].join(end);
  expect(await read(text)).toEqual([
    ['a', 'x', ''],
    ['b', 'y', ''],
  ]);
});

test('it does not matter where the network cuts', async () => {
  const text = 'event: añ👋\r\ndata: {"x":"👋"}\r\nid: 7\r\n\r\ndata: y\r\n\r\n';
  const whole = await read(text);
  const bytes = new TextEncoder().encode(text);
  for (let at = 1; at < bytes.length; at += 1) {
    const parts = [bytes.slice(0, at), bytes.slice(at)];
    const body = new ReadableStream<Uint8Array>({
      start(writer) {
        for (const part of parts) writer.enqueue(part);
        writer.close();
      },
    });
    const events = [];
    for await (const { event, data, id } of readStream(body)) events.push([event, data.trimEnd(), id]);
    expect(events, `cut at ${at}`).toEqual(whole);
  }
});

test('data of several lines are joined, comments and unknown fields are passed over, an event without data is none', async () => {
  expect(await read(': hello\nfoo: bar\ndata:a\ndata:  b\n\n', 'event: none\n\n', 'data: c\n\n')).toEqual([
    ['message', 'a\n b', ''],
    ['message', 'c', ''],
  ]);
});

test('what is not finished at the end is no event', async () => {
  expect(await read('data: a\n\ndata: b\n')).toEqual([['message', 'a', '']]);
});
