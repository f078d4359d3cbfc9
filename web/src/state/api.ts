// The calls of the page, beyond those that the client makes by itself.

import { Api, type PageOf, type Run, type Task } from '@rejoin/client';

export interface Upcoming {
  at: string;
  note?: string | null;
}

export interface Session {
  user: string;
  credential: string;
  device?: string | null;
}

/** A browser that is signed in. */
export interface Device {
  id: string;
  /** What it says it is. */
  name: string;
  created_at: string;
  last_seen: string;
  current?: boolean;
}

const ofTask = (task: string, rest = '') => `/tasks/${encodeURIComponent(task)}${rest}`;
const ofRun = (run: string, rest = '') => `/runs/${encodeURIComponent(run)}${rest}`;

export class PageApi extends Api {
  session = () => this.call<Session>('GET', '/session');
  signIn = (proof: { code: string } | { token: string }) =>
    this.call<void>('POST', '/session', { body: proof });
  devices = () => this.call<PageOf<Device>>('GET', '/session/devices');
  revoke = (device: string) => this.call<void>('DELETE', `/session/devices/${encodeURIComponent(device)}`);
  signOut = () => this.call<void>('DELETE', '/session');

  pause = (task: string) => this.call<Task>('POST', ofTask(task, '/pause'));
  resume = (task: string) => this.call<Task>('POST', ofTask(task, '/resume'));
  next = (task: string, n = 3) => this.call<PageOf<Upcoming>>('GET', ofTask(task, '/next'), { query: { n } });
  runs = (task: string, query: { limit?: number; cursor?: string | null } = {}) =>
    this.call<PageOf<Run>>('GET', ofTask(task, '/runs'), { query });
  run = (run: string) => this.call<Run>('GET', ofRun(run));

  outputUrl = (run: string, call: string) => this.base + ofRun(run, `/output/${encodeURIComponent(call)}`);
  fullEventUrl = (run: string, seq: number) => this.base + ofRun(run, `/events/${seq}/full`);
}
