import { expect, test } from 'vitest';
import { afterClose, parseReason } from '../src/closing';

const back = { blocked: null, minimumMs: 0, said: null };

test.each([1000, 1001, 1005, 1006, 1008, 1011, 1012, 1013, 1015, 4001, 4008, 4012, 4013, 4104, 4499])(
  'close %i comes back by itself',
  (code) => expect(afterClose(code, '')).toEqual(back),
);

test.each([1002, 1007, 1009])('close %i comes back only after the longest delay', (code) => {
  expect(afterClose(code, '')).toEqual({ ...back, minimumMs: 30_000 });
});

test('the server may ask for a pause', () => {
  expect(afterClose(4001, '{"code":"draining","retry_ms":1200}')).toEqual({
    blocked: null,
    minimumMs: 1_200,
    said: 'draining',
  });
  expect(afterClose(1009, '{"retry_ms":60000}')).toMatchObject({ minimumMs: 60_000 });
});

test.each([
  [4500, 'sign_in'],
  [4505, 'expired'],
  [4501, 'refused'],
  [4502, 'reload'],
  [4599, 'refused'],
])('close %i waits for a person: %s', (code, blocked) => {
  expect(afterClose(code, '')).toMatchObject({ blocked });
});

test('4514 on the only socket comes back', () => expect(afterClose(4514, '')).toEqual(back));

test.each(['', 'going away', '[]', 'null', '{"retry_ms":"soon"}', '{"retry_ms":-5}', '{"retry_ms":1e999}'])(
  'the reason %j asks for nothing',
  (reason) => expect(parseReason(reason)).toEqual({ said: null, retryMs: 0 }),
);
