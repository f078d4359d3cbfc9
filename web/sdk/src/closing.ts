// What a close means for the socket's owner. Pure: a code and a reason in, a decision out.

import { LONGEST_MS } from './backoff.js';

/** Why a connection stays down until a person does something. */
export type Blocked =
  /** The credential is missing or wrong: only signing in helps. */
  | 'sign_in'
  /** It was good before. */
  | 'expired'
  /** This page is too old for the server: only loading it again helps. */
  | 'reload'
  /** The server wants no more of this; a person may try again. */
  | 'refused'
  /** Nobody answered; it looks again by itself now and then. */
  | 'exhausted';

export interface AfterClose {
  blocked: Blocked | null;
  /** If it is not blocked, it comes back by itself, this much later at the earliest. */
  minimumMs: number;
  /** The server's word for it. */
  said: string | null;
}

/** The reason of a close is JSON of at most 123 bytes, or nothing that concerns us. */
export function parseReason(reason: string): { said: string | null; retryMs: number } {
  let value: unknown;
  try {
    value = JSON.parse(reason);
  } catch {
    // Somebody else's words.
  }
  const { code, retry_ms: retry } = (value ?? {}) as { code?: unknown; retry_ms?: unknown };
  return {
    said: typeof code === 'string' ? code : null,
    retryMs: Number.isFinite(retry) ? Math.max(0, retry as number) : 0,
  };
}

/**
 * The rule for the client's newest socket. An older one that closes, with 4514 or anything else, concerns nobody: its
 * owner has let go of it. So 4514 here means that the client's only socket was taken for an old one, and it comes back.
 */
export function afterClose(code: number, reason: string): AfterClose {
  const { said, retryMs } = parseReason(reason);
  const late = code === 1002 || code === 1007 || code === 1009;
  const final: Partial<Record<number, Blocked | null>> = {
    4500: 'sign_in',
    4502: 'reload',
    4505: 'expired',
    4514: null,
  };
  const blocked = code in final ? final[code]! : code >= 4500 ? 'refused' : null;
  return { blocked, minimumMs: late ? Math.max(LONGEST_MS, retryMs) : retryMs, said };
}
