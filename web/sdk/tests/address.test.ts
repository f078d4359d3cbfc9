import { expect, test } from 'vitest';
import { addressOf } from '../src/address';

test.each([
  ['http://127.0.0.1:7171', 'ws://127.0.0.1:7171/api/v1/live', 'http://127.0.0.1:7171/api/v1'],
  ['https://host', 'wss://host/api/v1/live', 'https://host/api/v1'],
  ['wss://host/api/v1/live', 'wss://host/api/v1/live', 'https://host/api/v1'],
  ['ws://host:1/', 'ws://host:1/api/v1/live', 'http://host:1/api/v1'],
  ['http://host/api/v1/', 'ws://host/api/v1/live', 'http://host/api/v1'],
  ['https://host/behind/proxy', 'wss://host/behind/proxy/api/v1/live', 'https://host/behind/proxy/api/v1'],
  // What is no address of ours has no place in ours: a credential least of all.
  ['http://name:secret@host/?token=x#y', 'ws://host/api/v1/live', 'http://host/api/v1'],
])('%s is all that one needs to know', (url, live, base) => {
  expect(addressOf(url)).toEqual({ live, base });
});
