// @rejoin/client: watches the tasks of a Rejoin server over one WebSocket, and comes back by itself.

export { Connection } from './connection';
export type {
  Blocked,
  ConnectionHandlers,
  ConnectionOptions,
  ConnectionState,
  ConnectionStatus,
} from './connection';
export { Subscription } from './subscription';
export type { ResetNews, SubscriptionHandler, SubscriptionState } from './subscription';
export { Drafts } from './draft';

export { Api, Problem } from './http';
export type { EventQuery, PageOf, Session, Upcoming } from './http';

export * from './frames';

export { browserEnvironment } from './environment';
export type { Environment, Socket, WakeUp } from './environment';

export { TaskLog } from './log';
export type { Gap, LogSink } from './log';
export { foldRun, hasEnded } from './run';
