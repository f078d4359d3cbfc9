// @rejoin/client: watches the tasks of a Rejoin server over one WebSocket, and comes back by itself.

export { Connection } from './connection.js';
export type {
  Blocked,
  ConnectionHandlers,
  ConnectionOptions,
  ConnectionState,
  ConnectionStatus,
} from './connection.js';
export { Subscription } from './subscription.js';
export type { ResetNews, SubscriptionHandler, SubscriptionState } from './subscription.js';
export { Drafts } from './draft.js';

export { Api, Problem } from './http.js';
export type { Device, EventQuery, PageOf, Session, Upcoming } from './http.js';

export * from './frames.js';

export { browserEnvironment } from './environment.js';
export type { Environment, Socket, WakeUp } from './environment.js';

export { TaskLog } from './log.js';
export type { Gap, LogSink } from './log.js';
export { foldRun, hasEnded } from './run.js';
