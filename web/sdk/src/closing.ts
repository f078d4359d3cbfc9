// What a close means for the socket's owner. Pure: a code and a reason in, a decision out.

import { LONGEST_MS } from './backoff.js';

export type AfterClose =
  /** Come back by itself, `minimum_ms` from now at the earliest. */
  | { kind: 'again'; minimum_ms: number; code: string | null }
  /** The credential is missing, wrong or expired: only signing in helps. */
  | { kind: 'sign_in'; expired: boolean }
  /** This page is too old for the server: only loading it again helps. */
  | { kind: 'reload' }
  /** The server wants no more of this; a person may try again. */
  | { kind: 'refused'; code: number };

/** The reason of a close is JSON of at most 123 bytes, or nothing that concerns us. */
export function parseReason(reason: string): { code: string | null; retry_ms: number } {
  try {
    const value = JSON.parse(reason) as { code?: unknown; retry_ms?: unknown } | null;
    const retry = value?.retry_ms;
    return {
      code: typeof value?.code === 'string' ? value.code : null,
      retry_ms: typeof retry === 'number' && Number.isFinite(retry) && retry > 0 ? retry : 0,
    };
  } catch {
    return { code: null, retry_ms: 0 };
  }
}

/** Close codes by their word, for streams whose last event names the word. */
const WORDS: Record<string, number> = {
  draining: 4001,
  too_slow: 4008,
  no_life: 4012,
  too_many_requests: 4013,
  connection_limit: 4104,
  bad_credential: 4500,
  bad_frames: 4501,
  protocol: 4502,
  expired: 4505,
  replaced: 4514,
};

/** The close code that a word or a number stands for; 1006, a line that broke, for what nobody knows. */
export function closeCode(said: unknown): number {
  return typeof said === 'number' ? said : (WORDS[String(said)] ?? 1006);
}

/**
 * The rule for the client's newest socket. An older one that closes, with 4514 or anything else, concerns nobody: its
 * owner has let go of it. So 4514 here means that the client's only socket was taken for an old one, and it comes back.
 */
export function afterClose(code: number, reason: string): AfterClose {
  const said = parseReason(reason);
  switch (code) {
    case 4500:
      return { kind: 'sign_in', expired: false };
    case 4505:
      return { kind: 'sign_in', expired: true };
    case 4502:
      return { kind: 'reload' };
    case 4514:
      return { kind: 'again', minimum_ms: said.retry_ms, code: said.code };
    case 1002:
    case 1007:
    case 1009:
      return { kind: 'again', minimum_ms: Math.max(LONGEST_MS, said.retry_ms), code: said.code };
    default:
      if (code >= 4500) return { kind: 'refused', code };
      return { kind: 'again', minimum_ms: said.retry_ms, code: said.code };
  }
}
