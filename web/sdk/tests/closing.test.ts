import { expect, test } from 'vitest';
import { afterClose, parseReason } from '../src/closing';

test.each([1000, 1001, 1005, 1006, 1008, 1011, 1012, 1013, 1015, 4001, 4008, 4012, 4013, 4104, 4499])(
  'close %i comes back by itself',
  (code) => expect(afterClose(code, '')).toEqual({ kind: 'again', minimum_ms: 0, code: null }),
);

test.each([1002, 1007, 1009])('close %i comes back only after the longest delay', (code) => {
  expect(afterClose(code, '')).toMatchObject({ kind: 'again', minimum_ms: 30_000 });
});

test('the server may ask for a pause', () => {
  expect(afterClose(4001, '{"code":"draining","retry_ms":1200}')).toEqual({
    kind: 'again',
    minimum_ms: 1_200,
    code: 'draining',
  });
  expect(afterClose(1009, '{"retry_ms":60000}')).toMatchObject({ minimum_ms: 60_000 });
});

test('4500 and 4505 ask for a sign-in', () => {
  expect(afterClose(4500, '')).toEqual({ kind: 'sign_in', expired: false });
  expect(afterClose(4505, '')).toEqual({ kind: 'sign_in', expired: true });
});

test('4501 waits for a person', () => expect(afterClose(4501, '')).toEqual({ kind: 'refused', code: 4501 }));
test('4502 asks to load the page again', () => expect(afterClose(4502, '')).toEqual({ kind: 'reload' }));
test('4514 on the only socket comes back', () =>
  expect(afterClose(4514, '')).toMatchObject({ kind: 'again' }));
test('an unknown code of 4500 and above does not come back', () =>
  expect(afterClose(4599, '')).toEqual({ kind: 'refused', code: 4599 }));

test.each(['', 'going away', '[]', 'null', '{"retry_ms":"soon"}', '{"retry_ms":-5}', '{"retry_ms":1e999}'])(
  'the reason %j asks for nothing',
  (reason) => expect(parseReason(reason).retry_ms).toBe(0),
);
