// Where the server is: any address of it that a person may have at hand, and the two that the client needs.

export interface Address {
  /** Of the socket. */
  live: string;
  /** Of the calls. */
  base: string;
}

/** `url` is that of the server, of its calls or of its socket; without one it is the page's own server. */
export function addressOf(url?: string | URL): Address {
  const at = new URL(url ?? '/', globalThis.location?.href);
  const path = at.pathname.replace(/(\/api\/v1(\/live)?)?\/*$/, '');
  const scheme = at.protocol.replace(/^ws/, 'http');
  const rest = `//${at.host}${path}/api/v1`;
  return { live: `${scheme.replace(/^http/, 'ws')}${rest}/live`, base: scheme + rest };
}
